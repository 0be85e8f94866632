#include "data/iterable_dataset_shard.h"

#include <limits>
#include <utility>

#include "tandem/rng/generators.h"

namespace tandem::data {
namespace {

// Until the end is known every step is a full one.
EpochPlan full_plan(EpochPlanOptions options) {
  // Iterables are evened out whatever even_batches says, as in Accelerate.
  options.even_batches = true;
  options.length = std::numeric_limits<std::int64_t>::max() / 2;
  return EpochPlan(options);
}

}  // namespace

IterableDatasetShard::IterableDatasetShard(EpochPlanOptions options, std::unique_ptr<detail::SampleWindow> window)
    : options_(options), plan_(full_plan(options)), window_(std::move(window)) {}

void IterableDatasetShard::start(std::uint64_t seed, std::int64_t epoch) {
  seed_ = seed;
  epoch_ = epoch;
  {
    const rng::KeyedGenerator generator(seed_, epoch_, kBeginning);
    window_->open(epoch_);
  }
  read_group();
}

bool IterableDatasetShard::advance() {
  if (!has_next()) return false;
  window_->advance();
  step_ += 1;
  read_group();
  return true;
}

std::any IterableDatasetShard::samples(int rank) const {
  const std::int64_t begin = step_ * plan_.global_batch_size();
  if (step_ >= plan_.steps(rank)) return window_->samples({}, begin);
  return window_->samples(plan_.positions(step_, rank), begin);
}

StepInfo IterableDatasetShard::info(int rank) const {
  StepInfo info{.step = step_};
  if (!ended_) return info;
  info.last = step_ + 1 >= plan_.steps(rank);
  info.last_of_all = step_ + 1 >= plan_.steps(0);
  info.remainder = plan_.remainder();
  if (info.last_of_all && info.remainder > 0) info.samples_to_keep = info.remainder;
  return info;
}

bool IterableDatasetShard::has_next() const {
  if (upcoming_ == 0) return false;
  return !options_.drop_last || upcoming_ == plan_.global_batch_size();
}

void IterableDatasetShard::read_group() {
  for (upcoming_ = 0; !ended_ && upcoming_ < plan_.global_batch_size();) {
    const rng::KeyedGenerator generator(seed_, epoch_, read_);
    if (window_->read()) {
      upcoming_ += 1;
      read_ += 1;
    } else {
      end();
    }
  }
}

void IterableDatasetShard::end() {
  ended_ = true;
  EpochPlanOptions options = plan_.options();
  options.length = read_;
  plan_ = EpochPlan(options);
}

}  // namespace tandem::data
