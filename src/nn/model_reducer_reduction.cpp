// What a ModelReducer does in a backward pass whose gradients are reduced.
#include <algorithm>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "comm/call_record.h"
#include "comm/rank_group.h"
#include "comm/shared_memory.h"
#include "comm/sparse.h"
#include "nn/copy_on_write.h"
#include "nn/model_reducer.h"
#include "nn/tensor_layout.h"
#include "tandem/comm/object_bytes.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::nn {

void ModelReducer::check_not_interrupted() const {
  if (in_pass_ && started_ > 0)
    throw CollectiveError(
        "a backward pass on rank " + std::to_string(communicator_.rank()) +
        " ended with an exception after the reduction of its gradients had begun; let the exception leave the body");
}

void ModelReducer::begin_pass() {
  throw_if_not_finite(false);
  if (!buckets_fit()) drop_buckets();
  spare_what_is_kept();
  // Other ranks' passes may reach a gradient that this rank's does not.
  for (std::size_t i = 0; pass_.keeps_apart && i < slots_.size(); ++i)
    if (!slots_[i].in_window) keep_before(i);
  for (ParameterSlot& slot : slots_) slot.arrivals = 0;
  for (ReducedBucket& bucket : buckets_) {
    bucket.missing = 0;
    for (const std::size_t i : bucket.slots)
      if (slots_[i].active) bucket.missing += slots_[i].expected;
    bucket.expects = bucket.missing > 0;
  }
  told_.passes += 1;
  told_.order.clear();
  told_.last_arrival = 0;
  started_ = released_ = 0;
  in_pass_ = true;
}

// The gradient of parameter `index` is going to be added to.
void ModelReducer::arriving(std::size_t index) {
  ParameterSlot& slot = slots_[index];
  if (slot.taken) return;
  if (slot.in_window)
    look_for_writes(index);
  else if (pass_.keeps_apart)
    keep_before(index);
}

// It has been added to.
void ModelReducer::arrived(std::size_t index) {
  group_.token().check();  // a long backward pass ends here when another rank has failed
  ParameterSlot& slot = slots_[index];
  slot.pending = slot.in_window = true;
  if (slot.before.defined() && !slot.taken) slot.leave(parameters_[index].second.grad());
  adds_locally_ = adds_locally_ || !in_pass_;
  if (pass_.arrived) pass_.arrived(parameters_[index].second);
  if (!in_pass_) return;
  slot.arrivals += 1;
  if (slot.arrivals == 1) told_.order.push_back(index);
  told_.last_arrival = ++pass_.arrivals;
  if (alone() || !slot.active || slot.arrivals > slot.expected) return;
  if (--buckets_[static_cast<std::size_t>(slot.bucket)].missing == 0) pass_.bucket_complete();
  release_reduced();
}

// Starts buckets in their order as long as they are complete; true when all have started.
bool ModelReducer::start_complete_buckets() {
  for (; started_ < buckets_.size(); ++started_) {
    ReducedBucket& bucket = buckets_[started_];
    if (!bucket.expects || bucket.missing > 0) return false;
    start(bucket, true);
  }
  return true;
}

// Lets go of gradients whose mean is there: the memory of a pass is that of a few buckets, on every rank.
void ModelReducer::release_reduced() {
  if (released_ == started_ || hook_) return;
  const trace::Range range(trace::Event::reduction);
  const at::NoGradGuard no_grad;
  for (; released_ < started_ && communicator_.try_wait(buckets_[released_].number); ++released_) {
    ReducedBucket& bucket = buckets_[released_];
    bucket.inputs.clear();
    for (std::size_t k = 0; k < bucket.taken.size(); ++k)
      if (ParameterSlot& slot = slots_[bucket.taken[k]];
          bucket.gradients[k].defined() && becomes_view(slot, bucket.gradients[k]))
        bucket.gradients[k] = slot.view;
  }
}

// Starts what has not started: what some rank has started, and of the other buckets what some rank's pass has reached.
void ModelReducer::settle() {
  const at::NoGradGuard no_grad;
  std::size_t most_started = started_;
  for (std::size_t i = 0; i < slots_.size(); ++i) told_.states[i] = anywhere_[i] = state_of(i);
  if (!alone()) {
    if (options_.static_graph && !buckets_.empty()) {
      check_as_promised();
      // As in the first pass, on all ranks.
      for (std::size_t i = 0; i < slots_.size(); ++i)
        anywhere_[i] = static_cast<std::uint8_t>(reached_[i] | (anywhere_[i] & PassReport::kLocalBefore));
      most_started = buckets_.size();
    } else {
      most_started = tell_each_other();
    }
    if (hook_) add_buckets_of_unexpected();
    for (; started_ < buckets_.size(); ++started_) start(buckets_[started_], started_ < most_started);
  }
}

std::uint8_t ModelReducer::state_of(std::size_t index) const {
  const ParameterSlot& slot = slots_[index];
  const at::Tensor& gradient = parameters_[index].second.grad();
  if (!slot.pending) return 0;
  const std::uint8_t before = slot.before.defined() && slot.before_is_local ? PassReport::kLocalBefore : 0;
  if (slot.taken) return before | PassReport::kDense | (gradient.defined() ? PassReport::kLate : 0);
  if (!gradient.defined() || !gradient.is_sparse()) return before | PassReport::kDense;
  return static_cast<std::uint8_t>(before | PassReport::kSparse | gradient.sparse_dim() << PassReport::kSparseDims);
}

// Returns how many buckets the rank that has started most has started.
std::size_t ModelReducer::tell_each_other() {
  told_.started = started_;
  const comm::CallRecord record{
      .operation = "reduce_gradients", .tensors = static_cast<std::int32_t>(slots_.size()), .signature = told_.passes};
  std::size_t most_started = 0;
  const auto hear = [&](const PassReport& told, int peer) {
    most_started = std::max(most_started, told.started);
    for (std::size_t i = 0; i < slots_.size(); ++i) anywhere_[i] |= told.states.at(i);
    if (peer > 0) return;
    order_ = told.order;
    last_arrival_ = told.last_arrival;
  };
  if (group_.place().nodes == 1) {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record, &told_);
    for (int peer = 0; peer < communicator_.world_size(); ++peer) hear(call.payload<PassReport>(peer), peer);
    return most_started;
  }
  int peer = 0;
  for (const std::string& bytes : group_.gather_bytes(
           communicator_.rank(), record, comm::pack(told_.states, told_.started, told_.order, told_.last_arrival))) {
    PassReport told;
    comm::unpack(bytes, told.states, told.started, told.order, told.last_arrival);
    hear(told, peer++);
  }
  return most_started;
}

void ModelReducer::check_as_promised() const {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const ParameterSlot& slot = slots_[i];
    if (slot.arrivals == slot.expected) continue;
    throw ConfigError("static_graph is on, but this pass reached parameter " + parameters_[i].first + ' ' +
                      std::to_string(slot.arrivals) + " times and the first one " + std::to_string(slot.expected) +
                      " times; turn it off for this model");
  }
}

// Starts the reduction of the bucket's active gradients: of all, or of those that some rank's pass has reached. Either
// is the same on all ranks.
void ModelReducer::start(ReducedBucket& bucket, bool whole) {
  const at::NoGradGuard no_grad;
  const auto reached = [this](std::size_t i) { return slots_[i].active && (anywhere_[i] & PassReport::kDense); };
  // A communication hook gets the memory of all.
  if (hook_) whole = whole || std::any_of(bucket.slots.begin(), bucket.slots.end(), reached);
  for (const std::size_t i : bucket.slots)
    if (whole ? slots_[i].active : reached(i)) take(bucket, i);
  if (bucket.taken.empty()) return;
  const trace::Range range(trace::Event::all_reduce,
                           {.bucket = &bucket - buckets_.data(), .bytes = reduced_bytes(bucket)});
  if (hook_)
    bucket.finish = hook_(*bucket.of_hook, communicator_);
  else if (bucket.squares_of_outputs.empty())
    bucket.number = communicator_.start_all_reduce(bucket.inputs, bucket.outputs, comm::ReduceOp::mean);
  else
    bucket.number = communicator_.shared_memory()->start_with_squares(bucket.inputs, bucket.outputs,
                                                                      bucket.squares_of_outputs, comm::ReduceOp::mean);
}

std::int64_t ModelReducer::reduced_bytes(const ReducedBucket& bucket) const {
  if (hook_) return static_cast<std::int64_t>(bucket.of_hook->gradients.nbytes());
  std::int64_t bytes = 0;
  for (const at::Tensor& input : bucket.inputs) bytes += static_cast<std::int64_t>(input.nbytes());
  return bytes;
}

// The parameter has no gradient until it is given back, so that a late one is told apart.
void ModelReducer::take(ReducedBucket& bucket, std::size_t index) {
  ParameterSlot& slot = slots_[index];
  at::Tensor gradient = std::exchange(parameters_[index].second.mutable_grad(), at::Tensor());
  if (gradient.defined() && gradient.is_sparse()) gradient = gradient.to_dense();
  if (hook_)
    write_to_bucket(slot, gradient);
  else
    list_for_reduction(bucket, slot, gradient);
  bucket.taken.push_back(index);
  bucket.gradients.push_back(std::move(gradient));
  slot.taken = true;
}

void ModelReducer::write_to_bucket(ParameterSlot& slot, at::Tensor& gradient) {
  if (!gradient.defined()) {
    slot.view.zero_();
    return;
  }
  const bool is_view = refers_to(gradient, slot.view);
  // What the hook makes of it is not wanted if no rank has reached it.
  if (is_view && !slot.pending) gradient = gradient.clone();
  if (!is_view) slot.view.copy_(gradient.detach());
}

// The view may be memory of all ranks, and another rank's gradient: it is not written to before the reduction.
void ModelReducer::list_for_reduction(ReducedBucket& bucket, ParameterSlot& slot, const at::Tensor& gradient) {
  const bool fits = gradient.defined() && gradient.layout() == at::kStrided && !gradient.is_conj() &&
                    !gradient.is_neg() && same_order_in_memory(gradient, slot.view);
  at::Tensor input = gradient;
  if (!gradient.defined())
    input = at::zeros_like(slot.view);
  else if (!fits)
    input = at::empty_like(slot.view).copy_(gradient.detach());
  bucket.outputs.push_back(fits && !becomes_view(slot, gradient) ? input : slot.view);
  bucket.inputs.push_back(std::move(input));
  slot.squares_known = adds_up_squares_ && slot.squares.defined();
  if (slot.squares_known) bucket.squares_of_outputs.push_back(slot.squares);
}

// Whether `gradient` is to be a view of its bucket after the reduction.
bool ModelReducer::becomes_view(const ParameterSlot& slot, const at::Tensor& gradient) const {
  return options_.gradient_as_bucket_view && !(gradient.defined() && (slot.kept || gradient.requires_grad()));
}

// The reduced gradient that the parameter gets.
const at::Tensor& ModelReducer::result(ParameterSlot& slot) const {
  if (!slot.lendable.defined()) return slot.view;
  if (!slot.lent.defined() || !refers_to(slot.lent, slot.view)) slot.lent = lent_copy(slot.lendable);
  return slot.lent;
}

void ModelReducer::collect() {
  const at::NoGradGuard no_grad;
  std::uint64_t last = 0;
  for (const ReducedBucket& bucket : buckets_) last = std::max(last, bucket.number);
  communicator_.wait(last);
  for (ReducedBucket& bucket : buckets_) {
    if (bucket.finish) bucket.finish();
    give_back(bucket);
    bucket.clear_pass();
  }
}

void ModelReducer::give_back(ReducedBucket& bucket) {
  for (std::size_t k = 0; k < bucket.taken.size(); ++k) {
    const std::size_t i = bucket.taken[k];
    ParameterSlot& slot = slots_[i];
    slot.taken = false;
    at::Tensor& gradient = bucket.gradients[k];
    if (anywhere_[i] == 0 && (hook_ || !gradient.defined())) {  // no rank has reached it
      parameters_[i].second.mutable_grad() = std::move(gradient);
      continue;
    }
    if (becomes_view(slot, gradient)) {
      gradient = result(slot);
    } else {
      if (!gradient.defined()) gradient = new_gradient(i);
      const at::Tensor& reduced = hook_ ? slot.view : bucket.outputs[k];
      if (!refers_to(gradient, reduced)) gradient.detach().copy_(reduced);
    }
    // What came too late is a part of this rank's gradient; the mean of the sum of both is the sum of their means.
    at::Tensor& late = parameters_[i].second.mutable_grad();
    if (late.defined()) gradient.detach().add_(late.detach());
    slot.unexpected = (anywhere_[i] & PassReport::kLate) != 0;
    late = std::move(gradient);
  }
}

at::Tensor ModelReducer::new_gradient(std::size_t index) const {
  return at::zeros_like(parameters_[index].second, at::MemoryFormat::Preserve).detach();
}

// Gradients that no bucket expected, and the buffers.
void ModelReducer::reduce_rest(int main) {
  const at::NoGradGuard no_grad;
  if (!alone()) {
    reduce_unexpected();
    for (std::size_t i = 0; i < slots_.size(); ++i)
      if ((anywhere_[i] & (PassReport::kSparse | PassReport::kDense)) == PassReport::kSparse) reduce_sparse(i);
    reduce_before();
  }
  followed_.follow(communicator_, group_, main);
}

void ModelReducer::reduce_unexpected() {
  std::vector<at::Tensor> gradients;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    ParameterSlot& slot = slots_[i];
    const bool expected = slot.active && slot.bucket >= 0;
    if (!slot.unexpected && (expected || !(anywhere_[i] & PassReport::kDense))) continue;
    slot.unexpected = false;
    at::Tensor& gradient = parameters_[i].second.mutable_grad();
    if (!gradient.defined()) gradient = new_gradient(i);
    if (gradient.is_sparse()) gradient = gradient.to_dense();
    gradients.push_back(gradient.detach());
  }
  if (!gradients.empty()) communicator_.all_reduce(gradients, comm::ReduceOp::mean);
}

void ModelReducer::check_finite() {
  if (!finite_check_) return;
  std::vector<at::Tensor> gradients;
  for (const auto& [name, parameter] : parameters_)
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  finite_check_->start(gradients, told_.passes);
}

void ModelReducer::throw_if_not_finite(bool wait) {
  const auto pass = finite_check_ ? finite_check_->first_found(wait) : std::nullopt;
  if (!pass) return;
  std::string where;
  for (const auto& [name, parameter] : parameters_)
    if (where.empty() && parameter.grad().defined() && !values_of(parameter.grad()).isfinite().all().item<bool>())
      where = "; that of " + name + " still is";
  throw Error("a gradient of reduction " + std::to_string(*pass) + " (counted from 1) is infinite or NaN on rank " +
              std::to_string(communicator_.rank()) + where);
}

// The sum of sparse tensors is their entries side by side.
void ModelReducer::reduce_sparse(std::size_t index) {
  const at::Tensor& parameter = parameters_[index].second;
  at::Tensor& gradient = parameters_[index].second.mutable_grad();
  const auto options = parameter.options().requires_grad(false);
  const std::int64_t dims = anywhere_[index] >> PassReport::kSparseDims;
  if (!gradient.defined()) gradient = comm::no_entries(parameter, dims);
  const at::Tensor mine = gradient.detach().coalesce();
  const auto indices = communicator_.all_gather(mine.indices().t().contiguous());
  const auto values = communicator_.all_gather(mine.values());
  gradient = at::sparse_coo_tensor(at::cat(indices).t(), at::cat(values).div_(communicator_.world_size()),
                                   parameter.sizes(), options.layout(at::kSparse))
                 .coalesce();
}

void ModelReducer::end_pass() {
  if (std::any_of(anywhere_.begin(), anywhere_.end(), [](std::uint8_t state) { return state != 0; })) {
    reached_ = anywhere_;
    for (std::uint8_t& state : reached_) state = static_cast<std::uint8_t>(state & ~PassReport::kLocalBefore);
    if (!alone() && !(options_.static_graph && !buckets_.empty())) learn();
  }
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].pending = false;
    // Its mean is there, which is to be scaled with the window on all ranks alike.
    slots_[i].in_window = slots_[i].in_window || anywhere_[i] != 0;
    if (!slots_[i].in_window)
      slots_[i].forget_window();
    else if (slots_[i].before.defined())
      slots_[i].leave(parameters_[i].second.grad());
  }
  in_pass_ = adds_locally_ = false;
}

}  // namespace tandem::nn
