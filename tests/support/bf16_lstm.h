// Whether this processor can do what LibTorch's LSTM does in bfloat16.
#pragma once

#include <torch/nn/modules/rnn.h>

#include "tandem/tandem.h"

namespace tandem::test {

// oneDNN has none for processors of some kinds, and says so with an error.
inline bool has_bf16_lstm() {
  try {
    launch({.cpu = 1, .mixed_precision = Precision::bf16}, [](Accelerator& accelerator) {
      torch::nn::LSTM lstm(8, 4);
      const auto precision = accelerator.autocast();
      std::get<0>(lstm->forward(at::ones({5, 3, 8}))).sum().backward();
      const at::NoGradGuard no_grad;
      lstm->eval();
      lstm->forward(at::ones({5, 3, 8}));
    });
    return true;
  } catch (const RankError&) {
    return false;
  }
}

}  // namespace tandem::test
