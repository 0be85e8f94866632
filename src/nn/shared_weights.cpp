#include "tandem/nn/shared_weights.h"

#include <algorithm>
#include <cstring>

#include <ATen/core/grad_mode.h>

#include "nn/memory.h"
#include "tandem/comm/describe_call.h"

namespace tandem::nn {
namespace {

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || !same_order_in_memory(a, b)) return false;
  return std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

comm::CallRecord record() { return comm::describe_object_call(comm::Operation::share_weights, typeid(SharedWeights)); }

}  // namespace

SharedWeights::SharedWeights(const NamedTensors& parameters, comm::Communicator& communicator, comm::RankGroup& group)
    : parameters_(parameters), communicator_(communicator), group_(group) {}

void SharedWeights::accept() {
  seen_.clear();
  for (const auto& [name, parameter] : parameters_)
    seen_.push_back({parameter.data_ptr(), static_cast<std::uint32_t>(parameter._version())});
}

std::optional<std::string> SharedWeights::written() const {
  for (std::size_t i = 0; i < seen_.size(); ++i) {
    const auto& [name, parameter] = parameters_[i];
    if (parameter.data_ptr() != seen_[i].data || static_cast<std::uint32_t>(parameter._version()) != seen_[i].version)
      return name;
  }
  return std::nullopt;
}

bool SharedWeights::shareable() const {
  return !forbidden_ && std::all_of(parameters_.begin(), parameters_.end(), [](const auto& named) {
    const at::Tensor& parameter = named.second;
    return parameter.is_cpu() && parameter.layout() == at::kStrided && parameter.is_non_overlapping_and_dense();
  });
}

bool SharedWeights::equal_on_all_ranks() const {
  bool equal = true;
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), &parameters_);
    const auto& main = call.payload<NamedTensors>(0);
    for (std::size_t i = 0; equal && communicator_.rank() != 0 && i < parameters_.size(); ++i)
      equal = same_bits(parameters_[i].second, main[i].second);
  }
  const auto all = group_.meet(communicator_.rank(), record(), equal ? 1 : 0);
  return std::all_of(all.begin(), all.end(), [](std::uint64_t one) { return one == 1; });
}

void SharedWeights::share() {
  const comm::RankGroup::Call call(group_, communicator_.rank(), record(), &parameters_);
  const auto& main = call.payload<NamedTensors>(0);
  for (std::size_t i = 0; communicator_.rank() != 0 && i < parameters_.size(); ++i)
    at::Tensor(parameters_[i].second).set_data(alias_of(main[i].second));
  shared_ = true;
  accept();
}

void SharedWeights::unshare() {
  if (!shared_) return;
  // All have their copies before anybody writes.
  const comm::RankGroup::Call call(group_, communicator_.rank(), record(), &parameters_);
  const at::NoGradGuard no_grad;
  for (const auto& [name, parameter] : parameters_)
    if (communicator_.rank() != 0) at::Tensor(parameter).set_data(parameter.detach().clone(at::MemoryFormat::Preserve));
  shared_ = false;
  accept();
}

}  // namespace tandem::nn
