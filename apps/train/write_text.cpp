#include "write_text.h"

#include <algorithm>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include "common/interrupt.h"

namespace train {
namespace {

constexpr std::uint64_t kSeed = 0;

}  // namespace

std::string write_text(Net& net, std::int64_t context, std::int64_t bytes) {
  const torch::NoGradGuard no_grad;
  net.eval();
  const at::Device device = net.parameters().front().device();
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(kSeed);
  const at::Tensor text = at::full({1, bytes + 1}, '\n', at::kLong);
  std::string written;
  for (std::int64_t end = 1; end <= bytes && !apps::interrupted(); ++end) {
    const at::Tensor scores = net.forward(text.slice(1, std::max<std::int64_t>(end - context, 0), end).to(device));
    const at::Tensor chances = scores[-1].to(at::kCPU, at::kDouble).softmax(0);
    if (!chances.isfinite().all().item<bool>()) break;
    const at::Tensor next = at::multinomial(chances, 1, false, generator);
    text[0][end].copy_(next[0]);
    written += static_cast<char>(next.item<std::int64_t>());
  }
  return written;
}

}  // namespace train
