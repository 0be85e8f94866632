#pragma once

#include <memory>

#include "tandem/nn/checkpoint.h"

namespace tandem::models {

/// What a layer makes of x; with `checkpoint` what is within is computed again in backward passes.
template <class Layer>
at::Tensor call_layer(const std::shared_ptr<Layer>& layer, const at::Tensor& x, bool checkpoint) {
  return checkpoint ? nn::checkpoint(layer, x) : layer->forward(x);
}

}  // namespace tandem::models
