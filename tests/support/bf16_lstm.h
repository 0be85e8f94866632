// Whether this processor can do what LibTorch's LSTM does in bfloat16.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/nn/modules/rnn.h>

namespace tandem::test {

// oneDNN has none for processors of some kinds, and says so with an error.
inline bool has_bf16_lstm() {
  torch::nn::LSTM lstm(8, 4);
  lstm->to(at::kBFloat16);
  const at::Tensor inputs = at::ones({5, 3, 8}, at::kBFloat16);
  try {
    lstm->forward(inputs);
    const at::NoGradGuard no_grad;
    lstm->forward(inputs);
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

}  // namespace tandem::test
