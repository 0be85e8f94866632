#include "tandem/data/step_planner.h"

#include <algorithm>
#include <string>

#include "tandem/core/error.h"

namespace tandem::data {

StepPlanner::StepPlanner(EpochPlanOptions options, std::shared_ptr<Sampler> sampler, int readers)
    : options_(options), sampler_(std::move(sampler)), readers_(readers) {
  options_.length = sampler_->length(options.length);
  EpochPlan{options_};  // finds out what does not go together
}

StepPlanner::StepPlanner(EpochPlanOptions options, std::shared_ptr<BatchSampler> sampler, int readers)
    : options_(options), batch_sampler_(std::move(sampler)), readers_(readers) {
  if (options.split_batches)
    throw ConfigError("a batch sampler does not go with split_batches: its batches are dealt whole; use one of them");
}

std::int64_t StepPlanner::global_batch_size() const { return sampler_ ? EpochPlan(options_).global_batch_size() : 0; }

std::int64_t StepPlanner::steps(int rank) const {
  if (sampler_) return EpochPlan(options_).steps(rank);
  return batches_of_rank(batch_sampler_->size(), options_, rank);
}

std::int64_t StepPlanner::len(int rank) const { return sampler_ ? EpochPlan(options_).len(rank) : steps(rank); }

std::shared_ptr<const EpochSteps> StepPlanner::draw(std::int64_t epoch) {
  if (batch_sampler_) return std::make_shared<BatchSampledSteps>(batch_sampler_->batches(epoch), options_);
  return std::make_shared<SampledSteps>(EpochPlan(options_),
                                        sampler_->begin(options_.length, epoch, options_.dispatch));
}

std::shared_ptr<const EpochSteps> StepPlanner::begin(std::uint64_t number, std::int64_t epoch) {
  const std::lock_guard lock(mutex_);
  auto found = begun_.find(number);
  if (found == begun_.end()) {
    const at::Tensor state = sampler_ ? sampler_->state() : at::Tensor();
    auto steps = draw(epoch);
    found = begun_.emplace(number, Begun{epoch, state, std::move(steps), readers_}).first;
  }
  Begun& begun = found->second;
  if (begun.epoch != epoch)
    throw DataError("ranks begin different epochs of a data loader: " + std::to_string(epoch) + " and " +
                    std::to_string(begun.epoch) + "; call set_epoch alike on all ranks");
  auto steps = begun.steps;
  begun.left_to_take -= 1;
  // Kept until all have it; without the steps, until the next is drawn: a state may still be asked for.
  if (begun.left_to_take == 0) begun.steps.reset();
  while (begun_.size() > 1 && begun_.begin()->second.left_to_take == 0) begun_.erase(begun_.begin());
  return steps;
}

void StepPlanner::exhausted(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  if (number <= last_exhausted_) return;
  last_exhausted_ = number;
  if (sampler_) sampler_->exhausted();
}

at::Tensor StepPlanner::state_before(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  if (const auto found = begun_.find(number); found != begun_.end()) return found->second.state_before;
  return sampler_ ? sampler_->state() : at::Tensor();
}

void StepPlanner::restore(std::uint64_t number, const at::Tensor& state) {
  const std::lock_guard lock(mutex_);
  if (begun_.contains(number)) return;  // by a rank that was faster: it has been drawn
  if (sampler_ && state.defined()) sampler_->set_state(state);
}

}  // namespace tandem::data
