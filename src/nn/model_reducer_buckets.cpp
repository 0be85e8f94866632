// How a ModelReducer divides its parameters into buckets.
#include <algorithm>
#include <map>
#include <tuple>

#include <ATen/Functions.h>
#include <c10/util/strides.h>

#include "comm/describe_call.h"
#include "comm/rank_group.h"
#include "nn/copy_on_write.h"
#include "nn/model_reducer.h"
#include "nn/tensor_layout.h"

namespace tandem::nn {
namespace {

// Parts begin at multiples of this, so that ranks never write to one cache line of two of them.
constexpr std::int64_t kPartBytes = 64;

// More would only cost time.
constexpr std::size_t kMaxBuckets = 128;

std::int64_t elements_of_part(const at::Tensor& parameter) {
  const auto grain = std::max<std::int64_t>(kPartBytes / parameter.element_size(), 1);
  return (parameter.numel() + grain - 1) / grain * grain;
}

std::int64_t blocks_of(const at::Tensor& parameter) {
  return (parameter.numel() + comm::kReductionBlock - 1) / comm::kReductionBlock;
}

std::size_t bytes_of(const at::Tensor& parameter) {
  return static_cast<std::size_t>(elements_of_part(parameter) * parameter.element_size());
}

// The elements of `flat` from `offset` on, in memory as LibTorch lays out a gradient of `parameter`.
at::Tensor part_of(const at::Tensor& flat, std::int64_t offset, const at::Tensor& parameter) {
  const bool dense = parameter.is_non_overlapping_and_dense();
  const auto strides = dense ? c10::DimVector(parameter.strides()) : c10::contiguous_strides(parameter.sizes());
  return tensor_on(flat, offset, parameter.sizes(), strides);
}

}  // namespace

// From the pass that has ended: which parameters the next one is expected to reach, and in which order.
void ModelReducer::learn() {
  bool unsuitable = false;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    ParameterSlot& slot = slots_[i];
    slot.active = (anywhere_[i] & PassReport::kDense) != 0;
    slot.expected = slot.arrivals;
    // A hook gets the whole memory of a bucket, in which then only gradients that it reduces may lie.
    unsuitable = unsuitable || (slot.active && slot.bucket < 0) || (hook_ && !slot.active && slot.bucket >= 0);
  }
  if (unsuitable) build_buckets();
}

void ModelReducer::build_buckets() {
  // All that ever were in a bucket (with a hook: that are active); first those that rank 0 has just reached, then the
  // others as they were.
  std::vector<std::size_t> order;
  std::vector<bool> listed(slots_.size(), false);
  const auto list = [&](std::size_t i) {
    const bool wanted = slots_[i].active || (slots_[i].bucket >= 0 && !hook_);
    if (!wanted || listed[i]) return;
    listed[i] = true;
    order.push_back(i);
  };
  for (const std::size_t i : order_) list(i);
  for (const ReducedBucket& bucket : buckets_)
    for (const std::size_t i : bucket.slots) list(i);
  for (std::size_t i = slots_.size(); i-- > 0;) list(i);
  buckets_.clear();
  for (ParameterSlot& slot : slots_) slot.leave_bucket();
  add_buckets(order);
}

// Puts what no bucket has and this pass has reached into buckets of this pass, for the hook to reduce.
void ModelReducer::add_buckets_of_unexpected() {
  std::vector<std::size_t> order;
  const auto list = [&](std::size_t i) {
    ParameterSlot& slot = slots_[i];
    if ((slot.active && slot.bucket >= 0) || !(anywhere_[i] & PassReport::kDense)) return;
    slot.active = true;
    slot.expected = slot.arrivals;
    slot.bucket = static_cast<int>(buckets_.size());  // for now, so that it is listed once
    order.push_back(i);
  };
  for (const std::size_t i : order_) list(i);
  for (std::size_t i = slots_.size(); i-- > 0;) list(i);
  add_buckets(order);
}

// Divides these parameters into further buckets.
void ModelReducer::add_buckets(const std::vector<std::size_t>& order) {
  const std::size_t before = buckets_.size();
  std::size_t bytes = 0;
  for (const std::size_t i : order) bytes += bytes_of(parameters_[i].second);
  const std::size_t limit = std::max(options_.bucket_bytes, bytes / kMaxBuckets);
  const auto is_full = [&](std::size_t size) {
    return size >=
           (buckets_.empty() ? std::min(limit, std::max(options_.first_bucket_bytes, bytes / kMaxBuckets)) : limit);
  };
  // A bucket has one type; several may fill at the same time. They are reduced in the order in which they are complete.
  struct Open {
    std::vector<std::size_t> slots;
    std::size_t bytes = 0;
  };
  std::map<std::tuple<at::ScalarType, c10::DeviceType, c10::DeviceIndex>, Open> open;
  const auto close = [&](Open& filled) {
    buckets_.emplace_back().slots = std::move(filled.slots);
    filled = {};
  };
  for (const std::size_t i : order) {
    const at::Tensor& parameter = parameters_[i].second;
    Open& filling = open[{parameter.scalar_type(), parameter.device().type(), parameter.device().index()}];
    filling.slots.push_back(i);
    filling.bytes += bytes_of(parameter);
    if (is_full(filling.bytes)) close(filling);
  }
  for (auto& [kind, filling] : open)
    if (!filling.slots.empty()) close(filling);
  allocate(before);
}

void ModelReducer::allocate(std::size_t first) {
  const bool shared = shares_buckets();
  if (!shared || communicator_.rank() == group_.place().first_rank)
    for (std::size_t b = first; b < buckets_.size(); ++b) allocate_own(b, shared);
  if (shared) share_buckets(first);
}

void ModelReducer::allocate_own(std::size_t index, bool lend) {
  ReducedBucket& bucket = buckets_[index];
  std::int64_t elements = 0, blocks = 0;
  for (const std::size_t i : bucket.slots) {
    elements += elements_of_part(parameters_[i].second);
    blocks += blocks_of(parameters_[i].second);
  }
  const auto options = parameters_[bucket.slots.front()].second.options().requires_grad(false);
  bucket.of_hook = std::make_unique<GradientBucket>();
  bucket.of_hook->index = index;
  bucket.of_hook->gradients = at::zeros({elements}, options);
  const bool has_squares = lend && at::isFloatingType(options.dtype().toScalarType());
  const at::Tensor squares = has_squares ? at::zeros({blocks}, options.dtype(at::kDouble)) : at::Tensor();
  std::int64_t offset = 0, block = 0;
  for (const std::size_t i : bucket.slots) {
    const at::Tensor& parameter = parameters_[i].second;
    ParameterSlot& slot = slots_[i];
    slot.bucket = static_cast<int>(index);
    slot.view = part_of(bucket.of_hook->gradients, offset, parameter);
    if (lend) slot.lendable = lendable(slot.view);
    if (has_squares) slot.squares = tensor_on(squares, block, {blocks_of(parameter)}, {1});
    bucket.of_hook->parts.push_back(slot.view);
    bucket.of_hook->parameters.push_back(parameter);
    offset += elements_of_part(parameter);
    block += blocks_of(parameter);
  }
}

// Whether the results of a process's ranks lie in one memory.
bool ModelReducer::shares_buckets() const {
  return options_.share_gradients && options_.gradient_as_bucket_view && !hook_ && communicator_.shares_memory() &&
         group_.place().some_share_memory();
}

// A process's other ranks refer to the buckets of its first one.
void ModelReducer::share_buckets(std::size_t first) {
  const auto record = comm::describe_object_call("reduce_gradients", typeid(ModelReducer));
  const comm::RankGroup::Call call(group_, communicator_.rank(), record, this);
  if (communicator_.rank() == group_.place().first_rank) return;
  const auto& main = call.payload<ModelReducer>(group_.place().first_rank);
  for (std::size_t b = first; b < buckets_.size(); ++b)
    for (const std::size_t i : buckets_[b].slots) {
      const ParameterSlot& of_main = main.slots_[i];
      ParameterSlot& slot = slots_[i];
      slot.bucket = static_cast<int>(b);
      slot.view = alias_of(of_main.view);
      slot.lendable = lendable(slot.view);
      if (of_main.squares.defined()) slot.squares = alias_of(of_main.squares);
    }
}

void ModelReducer::make_common(const std::vector<bool>& parameters) {
  if (!shares_buckets() || group_.place().nodes > 1) return;
  if (!buckets_fit()) drop_buckets();
  spare_what_is_kept();
  for (std::size_t i = 0; i < slots_.size(); ++i)  // others lie in memory as their gradients would not
    anywhere_[i] = parameters[i] && parameters_[i].second.is_non_overlapping_and_dense() ? PassReport::kDense : 0;
  learn();
}

SharedGradient ModelReducer::common_memory(std::size_t index) const {
  const ParameterSlot& slot = slots_[index];
  if (!slot.active || !slot.lendable.defined()) return {};
  return {slot.view, adds_up_squares_ ? slot.squares : at::Tensor()};
}

const at::Tensor& ModelReducer::common_gradient(std::size_t index) {
  ParameterSlot& slot = slots_[index];
  slot.squares_known = adds_up_squares_ && slot.squares.defined();
  return result(slot);
}

// Whether the parameters still are of the types and sizes that they had when the buckets were made.
bool ModelReducer::buckets_fit() const {
  return std::all_of(buckets_.begin(), buckets_.end(), [this](const ReducedBucket& bucket) {
    return std::all_of(bucket.slots.begin(), bucket.slots.end(), [this](std::size_t i) {
      const at::Tensor& parameter = parameters_[i].second;
      const at::Tensor& view = slots_[i].view;
      return parameter.scalar_type() == view.scalar_type() && parameter.device() == view.device() &&
             parameter.sizes() == view.sizes();
    });
  });
}

// Before the memory of buckets is written to again: what the program still refers to of the gradients that lie there
// gets memory of its own, or keeps this one. A parameter's gradient that it refers to is reduced where it is.
void ModelReducer::spare_what_is_kept() {
  if (alone()) return;
  for (std::size_t b = 0; b < buckets_.size(); ++b) spare_bucket(b);
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    ParameterSlot& slot = slots_[i];
    const at::Tensor& gradient = parameters_[i].second.grad();
    const auto is = [&](const at::Tensor& tensor) { return tensor.defined() && gradient.is_same(tensor); };
    // A view's storage has others on it, and the bucket has two references to the view.
    const std::size_t references = 1U + (is(slot.lent) ? 1U : 0U) + (is(slot.view) ? 2U : 0U);
    slot.kept = gradient.defined() && (gradient.use_count() > references ||
                                       (!is(slot.view) && !gradient.is_sparse() && gradient.storage().use_count() > 1));
    if (!slot.lent.defined()) continue;
    const bool referred_to = slot.lent.use_count() > (is(slot.lent) ? 2 : 1) || slot.lent.storage().use_count() > 1;
    if (!referred_to) continue;
    end_loan(slot.lent);
    slot.lent.reset();
  }
}

// A bucket of the rank's own whose memory the program refers to is left to it.
void ModelReducer::spare_bucket(std::size_t index) {
  const ReducedBucket& bucket = buckets_[index];
  if (!bucket.of_hook || slots_[bucket.slots.front()].lendable.defined()) return;
  const auto& memory = bucket.of_hook->gradients;
  bool referred_to = memory.use_count() > 1 || memory.storage().use_count() > 1 + bucket.slots.size();
  for (const std::size_t i : bucket.slots) {
    const at::Tensor& view = slots_[i].view;
    referred_to = referred_to || view.use_count() > (parameters_[i].second.grad().is_same(view) ? 3 : 2);
  }
  if (referred_to) allocate_own(index, /*lend=*/false);
}

void ModelReducer::drop_buckets() {
  buckets_.clear();
  for (ParameterSlot& slot : slots_) {
    slot.leave_bucket();
    slot.active = false;
  }
}

}  // namespace tandem::nn
