#include "nn/exact_gradients.h"

#include <algorithm>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

[[noreturn]] void throw_written(const std::string& name) {
  throw ConfigError("the gradient of " + name +
                    " was written to, or dropped, between backward passes of exact mode, which adds up those of "
                    "logical shards: do it when the window has closed (gradient_state().closes_window()), as "
                    "accelerator.clip_grad_norm_ and prepared optimizers do by themselves");
}

[[noreturn]] void throw_unlike(const std::string& name) {
  throw ConfigError("the gradient of " + name +
                    " came more often in one logical shard than in those before it; in exact mode all make the same "
                    "number of backward passes in a micro-batch");
}

}  // namespace

void ExactGradients::Slot::show(const at::Tensor& gradient) {
  parameter.mutable_grad() = gradient;
  shown = gradient;
  shown_version = gradient.defined() ? static_cast<std::uint32_t>(gradient._version()) : 0;
}

bool ExactGradients::Slot::is_as_shown() const {
  const at::Tensor& gradient = parameter.grad();
  if (!gradient.defined() || !shown.defined()) return gradient.defined() == shown.defined();
  return gradient.is_same(shown) && static_cast<std::uint32_t>(gradient._version()) == shown_version;
}

bool ExactGradients::Slot::is_dropped() const {
  const at::Tensor& gradient = parameter.grad();
  return shown.defined() && (!gradient.defined() || (!is_as_shown() && is_zero(gradient)));
}

ExactGradients::ExactGradients(ReducerGroup& models, comm::Communicator& communicator, comm::RankGroup& group, int each)
    : models_(models), communicator_(communicator), group_(group), each_(each) {
  models_.tell_arrivals([this](const at::Tensor& parameter) { arrived(parameter); });
}

ExactGradients::~ExactGradients() { models_.tell_arrivals({}); }

void ExactGradients::begin_window() {
  slots_.clear();
  places_.clear();
  for (const auto& model : models_)
    for (std::size_t index = 0; index < model->parameters().size(); ++index) {
      const auto& [name, parameter] = model->parameters()[index];
      if (!places_.emplace(parameter.unsafeGetTensorImpl(), slots_.size()).second) continue;  // of two models
      Slot& slot = slots_.emplace_back();
      slot.model = model.get();
      slot.index = index;
      slot.name = name;
      slot.parameter = parameter;
      slot.of_shards.resize(static_cast<std::size_t>(each_));
      slot.nodes.resize(static_cast<std::size_t>(each_));
      slot.show(at::Tensor(parameter.grad()));
    }
  sub_step_ = -1;
  has_passed_ = false;
  skipped_ = 0;
}

void ExactGradients::begin_micro_batch(int sub_step, bool whole, double factor) {
  const at::NoGradGuard no_grad;
  keep_shard();
  for (Slot& slot : slots_) {
    at::Tensor& so_far = slot.of_shard(sub_step);
    if (so_far.defined() && factor != 1) so_far.mul_(factor);
    if (sub_step_ >= 0) slot.show(so_far.defined() ? so_far : slot.before);
    // What shards have done in micro-batches before this one says nothing of this one.
    slot.most_arrivals = sub_step == 0 ? 0 : std::max(slot.most_arrivals, slot.arrivals);
    slot.arrivals = 0;
    slot.in_tree = slot.is_scaled = false;
    slot.sum.reset();
  }
  sub_step_ = sub_step;
  whole_ = whole;
  has_passed_ = false;
}

// Adds a gradient to its partner's in the tree as long as it is in the cache, where no other will come: the shards
// before have had one each. This saves a third of what exact mode costs (benchmarks/exact.cpp, mlp).
void ExactGradients::arrived(const at::Tensor& parameter) {
  const auto place = places_.find(parameter.unsafeGetTensorImpl());
  if (place == places_.end() || sub_step_ < 0) return;
  Slot& slot = slots_[place->second];
  slot.arrivals += 1;
  if (slot.in_tree) throw_unlike(slot.name);
  at::Tensor& gradient = slot.parameter.mutable_grad();
  const bool has_partner = whole_ && 2 * sub_step_ >= each_ && each_ > 1;
  if (!has_partner || slot.most_arrivals != 1 || gradient.is_sparse() || gradient.requires_grad()) return;
  const at::NoGradGuard no_grad;
  slot.in_tree = true;
  slot.sum = add_leaf(slot.nodes, sub_step_, std::exchange(gradient, {}), false);
  scale(slot);
}

// The sum of one rank alone, which is in the cache, is that of all.
void ExactGradients::scale(Slot& slot) const {
  if (communicator_.world_size() > 1 || !factor_ || !slot.sum.defined() || !comm::is_alone(slot.sum) ||
      !slot.parameter.is_non_overlapping_and_dense() || slot.sum.strides() != slot.parameter.strides())
    return;
  slot.sum.mul_(*factor_);
  slot.is_scaled = true;
}

// The micro-batch before this one has ended: what its shard has computed is kept.
void ExactGradients::keep_shard() {
  if (whole_ && sub_step_ >= 0 && !has_passed_) skipped_ = sub_step_ + 1;
  if (sub_step_ < 0 || !has_passed_) return;
  for (Slot& slot : slots_) {
    if (slot.in_tree) {
      if (!slot.is_as_shown()) throw_written(slot.name);
      continue;
    }
    at::Tensor gradient = std::exchange(slot.leaf, {});
    if (gradient.defined() && gradient.requires_grad()) gradient = gradient.detach();  // create_graph
    const bool dropped = slot.is_dropped();
    // Where it is whole, dropping it is meant for the gradient of the update: that is made with the others.
    const bool is_there = slot.is_as_shown() || (dropped && (!whole_ || !slot.parameter.grad().defined()));
    if (!is_there) throw_written(slot.name);
    slot.show({});
    if (whole_)
      add_leaf(slot.nodes, sub_step_, std::move(gradient), false);
    else
      slot.of_shard(sub_step_) = dropped ? at::Tensor() : std::move(gradient);
  }
}

void ExactGradients::before_pass(std::optional<double> factor) {
  factor_ = factor;
  for (Slot& slot : slots_) take_gradient(slot);
}

// Makes the parameter's gradient the shard's own.
void ExactGradients::take_gradient(Slot& slot) {
  at::Tensor& gradient = slot.parameter.mutable_grad();
  if (has_passed_) {
    if (slot.in_tree) throw_unlike(slot.name);
    if (!slot.is_as_shown()) throw_written(slot.name);
    gradient = slot.leaf;
    return;
  }
  at::Tensor& so_far = slot.of_shard(sub_step_);
  if (slot.is_dropped()) {
    so_far.reset();
    slot.before.reset();
  } else if (!slot.is_as_shown() && (so_far.defined() || sub_step_ > 0)) {
    throw_written(slot.name);
  } else if (!so_far.defined()) {
    slot.before = gradient;  // the program may write to what is kept of windows before
  }
  slot.shown.reset();
  gradient = std::exchange(so_far, {});
}

void ExactGradients::after_pass() {
  has_passed_ = true;
  for (Slot& slot : slots_) {
    slot.leaf = slot.parameter.grad();
    slot.show(slot.leaf);
  }
}

// Puts the gradient of shard number `shard` of the rank into its place in the tree, whose nodes of `half` shards' sums
// lie from `half` on, and adds up what is complete. Returns the first node of all when that is there.
at::Tensor ExactGradients::add_leaf(std::vector<at::Tensor>& nodes, int shard, at::Tensor gradient,
                                    bool keeps_nodes) const {
  bool is_own = false;  // a sum that was made here
  for (int half = each_ / 2; half > 0; half /= 2) {
    const auto place = static_cast<std::size_t>(half + shard % half);
    if (shard < half) {
      nodes[place] = std::move(gradient);
      return {};
    }
    shard -= half;
    const at::Tensor left = std::exchange(nodes[place], {});
    const bool both = left.defined() && gradient.defined();
    if (both && is_own && !left.is_sparse() && !gradient.is_sparse())
      at::add_out(gradient, left, gradient);
    else
      gradient = comm::sum_of_nodes(left, gradient, !keeps_nodes && comm::is_alone(left));
    is_own = is_own || both;
  }
  return gradient;
}

// Over the shards of this rank, of which those from `first` on are in no node yet: `gradient` is that of the first.
at::Tensor ExactGradients::sum_of_rank(Slot& slot, int first, const at::Tensor& gradient) const {
  std::vector<at::Tensor> nodes = slot.nodes;
  // Where it has its place in the tree no pass comes after this one, so the sum need not be kept.
  at::Tensor sum = slot.in_tree ? std::exchange(slot.sum, {})
                                : add_leaf(nodes, first, gradient.defined() ? gradient.detach() : gradient, true);
  for (int shard = first + 1; shard < each_; ++shard)
    sum = add_leaf(nodes, shard, slot.of_shards[static_cast<std::size_t>(shard)], true);
  return sum;
}

// Where the sums of those that come `dense` are to lie.
std::vector<comm::CommonSum> ExactGradients::common_sums(const std::vector<bool>& dense) const {
  for (const auto& model : models_) {
    std::vector<bool> wanted(model->parameters().size());
    for (std::size_t i = 0; i < slots_.size(); ++i)
      if (slots_[i].model == model.get()) wanted[slots_[i].index] = dense[i];
    model->make_common(wanted);
  }
  std::vector<comm::CommonSum> sums;
  for (const Slot& slot : slots_) {
    auto [memory, squares] = slot.model->common_memory(slot.index);
    sums.push_back({std::move(memory), std::move(squares)});
  }
  return sums;
}

std::vector<at::Tensor> ExactGradients::sum_over_ranks(std::vector<at::Tensor> terms, double factor) {
  std::vector<at::Tensor> like, scaled(slots_.size());
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    like.push_back(slots_[i].parameter);
    if (slots_[i].is_scaled) scaled[i] = std::exchange(terms[i], {});
  }
  auto sums = comm::tree_sum_over_ranks(communicator_, group_, std::move(terms), like, factor,
                                        [this](const std::vector<bool>& dense) { return common_sums(dense); });
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const auto [memory, squares] = slots_[i].model->common_memory(slots_[i].index);
    if (memory.defined() && sums[i].is_same(memory)) sums[i] = slots_[i].model->common_gradient(slots_[i].index);
    if (scaled[i].defined()) sums[i] = std::move(scaled[i]);
  }
  for (const auto& model : models_) {
    std::vector<bool> reached;
    for (const auto& [name, parameter] : model->parameters())
      reached.push_back(sums[places_.at(parameter.unsafeGetTensorImpl())].defined());
    model->reduced_elsewhere(reached);
  }
  return sums;
}

void ExactGradients::reduce(double factor) {
  const at::NoGradGuard no_grad;
  if (skipped_ > 0)
    throw ConfigError("logical shard " + std::to_string(skipped_) + " of the " + std::to_string(each_) + " that rank " +
                      std::to_string(communicator_.rank()) +
                      " computes of a global batch has made no backward pass; let each make one, of a loss of 0 where "
                      "there is nothing to learn");
  for (const auto& model : models_) model->throw_if_not_finite(false);
  std::vector<at::Tensor> terms;
  for (Slot& slot : slots_) terms.push_back(sum_of_rank(slot, sub_step_, slot.leaf));
  const auto sums = sum_over_ranks(std::move(terms), factor);
  for (std::size_t i = 0; i < slots_.size(); ++i)
    slots_[i].show(comm::sum_of_nodes(slots_[i].before, sums[i], /*overwrites_left=*/false));
  for (const auto& model : models_) model->check_finite();
}

void ExactGradients::answer(double factor) {
  const at::NoGradGuard no_grad;
  keep_shard();
  std::vector<at::Tensor> terms;
  for (Slot& slot : slots_) terms.push_back(sum_of_rank(slot, 0, slot.of_shards.front()));
  sum_over_ranks(std::move(terms), factor);
}

void ExactGradients::end_window() noexcept {
  slots_.clear();
  has_passed_ = false;
}

}  // namespace tandem::nn
