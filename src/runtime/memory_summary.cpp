// Where a rank's memory is, for errors and for people.
#include <algorithm>
#include <cstdio>

#include <c10/core/CachingDeviceAllocator.h>

#include "optim/optimizer_fields.h"
#include "runtime/training_parts.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {
namespace {

constexpr std::size_t kLargest = 3;  // tensors that are named

std::string megabytes(std::size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

std::size_t bytes_of(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided ? tensor.nbytes() : 0;
}

std::size_t state_bytes(const torch::optim::Optimizer& optimizer) {
  std::size_t bytes = 0;
  for (const auto& [parameter, state] : optimizer.state())
    optim::visit_tensors(*state, [&](const at::Tensor& tensor) { bytes += bytes_of(tensor); });
  return bytes;
}

// What the allocator has given out on `device`; nothing for an allocator that does not count.
std::string allocated_on(c10::Device device) {
  auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  if (device.is_cpu() || !allocator) return "";
  const auto stats = allocator->getDeviceStats(device.index());
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return "; all that is allocated on " + device.str() + ": " +
         megabytes(static_cast<std::size_t>(stats.allocated_bytes[kAll].current)) +
         ", reserved: " + megabytes(static_cast<std::size_t>(stats.reserved_bytes[kAll].current));
}

}  // namespace

std::string Accelerator::memory_summary() const {
  std::size_t parameters = 0, gradients = 0, states = 0;
  std::vector<std::pair<std::size_t, std::string>> largest;
  for (const auto& reducer : prepared_.reducers)
    for (const auto& [name, parameter] : reducer->parameters()) {
      parameters += bytes_of(parameter);
      gradients += bytes_of(parameter.grad());
      largest.emplace_back(bytes_of(parameter), name);
    }
  for (const auto& optimizer : prepared_.alive_optimizers()) states += state_bytes(optimizer.inner());
  std::stable_sort(largest.begin(), largest.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::string text = "rank " + std::to_string(rank()) + " holds parameters of " + megabytes(parameters) +
                     ", gradients of " + megabytes(gradients) + ", optimizer state of " + megabytes(states);
  for (std::size_t i = 0; i < std::min(kLargest, largest.size()); ++i)
    text += (i == 0 ? "; its largest parameters: " : ", ") + largest[i].second + " " + megabytes(largest[i].first);
  return text + allocated_on(device());
}

}  // namespace tandem
