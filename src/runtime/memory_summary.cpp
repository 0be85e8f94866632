// Where a rank's memory is, for errors and for people.
#include <algorithm>
#include <cstdio>

#include <c10/core/CachingDeviceAllocator.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "tandem/runtime/accelerator.h"

namespace tandem {
namespace {

constexpr std::size_t kLargest = 3;  // tensors that are named

std::string text_of(std::size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

std::size_t bytes_of(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided ? tensor.nbytes() : 0;
}

template <class State>
std::size_t adam_bytes(const State& state) {
  return bytes_of(state.exp_avg()) + bytes_of(state.exp_avg_sq()) + bytes_of(state.max_exp_avg_sq());
}

std::size_t state_bytes(const torch::optim::Optimizer& optimizer) {
  std::size_t bytes = 0;
  for (const auto& [parameter, state] : optimizer.state()) {
    if (const auto* adamw = dynamic_cast<const torch::optim::AdamWParamState*>(state.get()))
      bytes += adam_bytes(*adamw);
    if (const auto* adam = dynamic_cast<const torch::optim::AdamParamState*>(state.get())) bytes += adam_bytes(*adam);
    if (const auto* sgd = dynamic_cast<const torch::optim::SGDParamState*>(state.get()))
      bytes += bytes_of(sgd->momentum_buffer());
  }
  return bytes;
}

// What the allocator has given out on `device`; nothing for an allocator that does not count.
std::string allocated_on(c10::Device device) {
  auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  if (device.is_cpu() || !allocator) return "";
  const auto stats = allocator->getDeviceStats(device.index());
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return "; all that is allocated on " + device.str() + ": " +
         text_of(static_cast<std::size_t>(stats.allocated_bytes[kAll].current)) +
         ", reserved: " + text_of(static_cast<std::size_t>(stats.reserved_bytes[kAll].current));
}

}  // namespace

std::string Accelerator::memory_summary() const {
  std::size_t parameters = 0, gradients = 0, states = 0;
  std::vector<std::pair<std::size_t, std::string>> largest;
  for (const auto& reducer : reducers_)
    for (const auto& [name, parameter] : reducer->parameters()) {
      parameters += bytes_of(parameter);
      gradients += bytes_of(parameter.grad());
      largest.emplace_back(bytes_of(parameter), name);
    }
  for (const auto& observer : optimizers_)
    if (const auto optimizer = observer.lock()) states += state_bytes(optimizer->inner());
  std::stable_sort(largest.begin(), largest.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::string text = "rank " + std::to_string(rank()) + " holds parameters of " + text_of(parameters) +
                     ", gradients of " + text_of(gradients) + ", optimizer state of " + text_of(states);
  for (std::size_t i = 0; i < std::min(kLargest, largest.size()); ++i)
    text += (i == 0 ? "; its largest parameters: " : ", ") + largest[i].second + " " + text_of(largest[i].first);
  return text + allocated_on(device());
}

}  // namespace tandem
