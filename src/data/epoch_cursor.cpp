#include "tandem/data/epoch_cursor.h"

#include <algorithm>
#include <string>

#include "tandem/core/error.h"

namespace tandem::data {

EpochCursor::EpochCursor(EpochPlan plan, int rank, std::unique_ptr<Sampler> sampler)
    : plan_(std::move(plan)),
      rank_(rank),
      shared_(std::make_shared<Shared>(Shared{std::move(sampler), 0})),
      status_(std::make_unique<LoaderStatus>()),
      step_(plan_.steps(rank)) {}

EpochCursor::EpochCursor(const EpochCursor& other, std::int64_t skip)
    : plan_(other.plan_),
      rank_(other.rank_),
      skip_(other.skip_ + skip),
      shared_(other.shared_),
      status_(std::make_unique<LoaderStatus>()),
      step_(plan_.steps(rank_)) {}

EpochCursor EpochCursor::skipping(std::int64_t steps) const {
  if (steps < 0) throw ConfigError("skip_first_batches(" + std::to_string(steps) + "): use 0 or more");
  return EpochCursor(*this, steps);
}

void EpochCursor::start() {
  *status_ = LoaderStatus{.remainder = plan_.remainder()};
  order_ = shared_->sampler->begin(plan_.options().length, shared_->epoch, plan_.options().dispatch);
  step_ = skip_;
  // Where no step is left nobody takes the last sample, but the epoch is all the same used up.
  if (!has_step()) shared_->sampler->exhausted();
}

std::vector<std::int64_t> EpochCursor::indices(int rank) const {
  auto indices = plan_.positions(step_, rank);
  for (auto& index : indices) index = order_[index];
  return indices;
}

void EpochCursor::advance() {
  status_->last_step_of_all = plan_.is_last_step(step_);
  if (status_->last_step_of_all) status_->samples_to_keep = std::max<std::int64_t>(plan_.remainder(), 0);
  step_ += 1;
  if (!has_step()) {
    status_->end_of_dataloader = true;
    shared_->sampler->exhausted();
  }
}

void EpochCursor::finish() { shared_->epoch += 1; }

std::int64_t EpochCursor::len() const { return std::max<std::int64_t>(plan_.len(rank_) - skip_, 0); }

}  // namespace tandem::data
