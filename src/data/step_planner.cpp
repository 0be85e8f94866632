#include "data/step_planner.h"

#include <string>
#include <utility>

#include "tandem/core/error.h"

namespace tandem::data {

namespace {

EpochPlanOptions with_length_of(const Sampler& sampler, EpochPlanOptions options) {
  options.length = sampler.length(options.length);
  EpochPlan{options};  // finds out what does not go together
  return options;
}

EpochPlanOptions checked_for_batches(EpochPlanOptions options) {
  if (options.split_batches)
    throw ConfigError("a batch sampler does not go with split_batches: its batches are dealt whole; use one of them");
  return options;
}

}  // namespace

void throw_other_epoch(std::int64_t epoch, std::int64_t other) {
  throw DataError("ranks begin different epochs of a data loader: " + std::to_string(epoch) + " and " +
                  std::to_string(other) + "; call set_epoch alike on all ranks");
}

StepPlanner::StepPlanner(EpochPlanOptions options, std::shared_ptr<Sampler> sampler, int readers, std::uint64_t seed)
    : options_(with_length_of(*sampler, options)),
      sampler_(std::move(sampler)),
      readers_(readers),
      drawer_(options_, sampler_, seed) {}

StepPlanner::StepPlanner(EpochPlanOptions options, std::shared_ptr<BatchSampler> sampler, int readers,
                         std::uint64_t seed)
    : options_(checked_for_batches(options)),
      batch_sampler_(std::move(sampler)),
      readers_(readers),
      drawer_(options_, batch_sampler_, seed) {}

std::int64_t StepPlanner::global_batch_size() const { return sampler_ ? EpochPlan(options_).global_batch_size() : 0; }

std::int64_t StepPlanner::steps(int rank) const {
  if (sampler_) return EpochPlan(options_).steps(rank);
  const std::lock_guard lock(mutex_);  // another rank may be drawing
  return batches_of_rank(batch_sampler_->size(), options_, rank);
}

std::int64_t StepPlanner::len(int rank) const { return sampler_ ? EpochPlan(options_).len(rank) : steps(rank); }

std::shared_ptr<const EpochSteps> StepPlanner::begin(std::uint64_t number, std::int64_t epoch) {
  const std::lock_guard lock(mutex_);
  auto found = begun_.find(number);
  if (found == begun_.end()) found = begun_.emplace(number, draw(number, epoch)).first;
  Begun& begun = found->second;
  if (begun.failure) std::rethrow_exception(begun.failure);
  if (begun.epoch != epoch) throw_other_epoch(epoch, begun.epoch);
  auto steps = begun.steps;
  begun.left_to_take -= 1;
  if (begun.left_to_take == 0) begun.steps.reset();
  return steps;
}

// What went wrong is kept: the sampler is elsewhere then, and ranks that come later are told the same.
StepPlanner::Begun StepPlanner::draw(std::uint64_t number, std::int64_t epoch) {
  Begun begun{.epoch = epoch,
              .before = next_position(number),
              .within = {},
              .steps = nullptr,
              .failure = nullptr,
              .left_to_take = readers_,
              .left_to_look = readers_};
  try {
    if (restored_ && restored_->number == number) {
      const Restored restored = *std::exchange(restored_, std::nullopt);
      begun.steps = drawer_.go_to(restored.position, restored.epoch);
      if (restored.epoch != epoch) begun.steps = nullptr;  // set_epoch was called since
    }
    if (!begun.steps) begun.steps = drawer_.draw(epoch);
    begun.within = drawer_.within();
    last_drawn_ = number;
    if (on_drawn_) on_drawn_(number, epoch, *begun.steps);
  } catch (...) {
    begun.failure = std::current_exception();
  }
  return begun;
}

SamplerPosition StepPlanner::position(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  const auto found = begun_.find(number);
  SamplerPosition position = found->second.within;
  found->second.left_to_look -= 1;
  if (found->second.left_to_look == 0) begun_.erase(found);
  return position;
}

SamplerPosition StepPlanner::position_before(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  if (const auto found = begun_.find(number); found != begun_.end()) return found->second.before;
  return next_position(number);
}

SamplerPosition StepPlanner::next_position(std::uint64_t number) const {
  return restored_ && restored_->number == number ? restored_->position : drawer_.after();
}

void StepPlanner::exhausted(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  if (number <= last_exhausted_) return;
  last_exhausted_ = number;
  drawer_.exhausted(number < last_drawn_);
}

void StepPlanner::restore(std::uint64_t number, std::uint64_t load, const SamplerPosition& position,
                          std::int64_t epoch) {
  const std::lock_guard lock(mutex_);
  if (load <= last_load_) return;  // a rank that was faster has loaded another one since
  last_load_ = load;
  if (begun_.contains(number)) return;  // by a rank that was faster: it has been drawn
  restored_ = {number, position, epoch};
}

}  // namespace tandem::data
