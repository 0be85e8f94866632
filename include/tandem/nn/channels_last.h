#pragma once

#include <torch/nn/module.h>

namespace tandem::nn {

/// Lays the 4-dim parameters and buffers of `module` out with the channels last in memory (NHWC), as PyTorch's
/// module.to(memory_format=torch.channels_last) does, which LibTorch's C++ modules lack. Convolutions run faster that
/// way, on CPUs and on GPUs with tensor cores, when their input lies so too: convert it by
/// `images.contiguous(at::MemoryFormat::ChannelsLast)`; layers hand it on. Call it before `prepare`. Sizes, values and
/// saved files stay as they are; results differ by rounding.
void to_channels_last(torch::nn::Module& module);

}  // namespace tandem::nn
