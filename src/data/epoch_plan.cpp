#include "tandem/data/epoch_plan.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <string>

#include "tandem/core/error.h"

namespace tandem::data {
namespace {

std::vector<std::int64_t> range(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> positions(static_cast<std::size_t>(std::max<std::int64_t>(end - begin, 0)));
  std::iota(positions.begin(), positions.end(), begin);
  return positions;
}

std::string nearest_multiples(std::int64_t value, std::int64_t divisor) {
  const std::int64_t below = value / divisor * divisor;
  const std::string above = std::to_string(below + divisor);
  return below > 0 ? std::to_string(below) + " or " + above : above;
}

EpochPlanOptions checked(EpochPlanOptions options) {
  if (options.length < 0) throw ConfigError("dataset length " + std::to_string(options.length) + " is negative");
  if (options.batch_size < 1)
    throw ConfigError("batch_size " + std::to_string(options.batch_size) + " is too small; use 1 or more");
  if (options.ranks < 1) throw ConfigError("a plan for " + std::to_string(options.ranks) + " ranks; use 1 or more");
  if (options.split_batches && options.batch_size % options.ranks != 0)
    throw ConfigError("batch_size " + std::to_string(options.batch_size) + " does not divide by " +
                      std::to_string(options.ranks) + " ranks with split_batches; use " +
                      nearest_multiples(options.batch_size, options.ranks));
  return options;
}

}  // namespace

EpochPlan::EpochPlan(EpochPlanOptions options)
    : options_(checked(options)),
      global_(options.split_batches ? options.batch_size : options.batch_size * options.ranks),
      per_rank_(global_ / options.ranks),
      full_(options.length / global_),
      tail_(options.length % global_) {}

std::int64_t EpochPlan::steps(int rank) const {
  if (tail_ == 0 || options_.drop_last) return full_;
  const bool uneven = !options_.dispatch && !options_.even_batches && options_.ranks > 1;
  return full_ + (uneven && rank * per_rank_ >= tail_ ? 0 : 1);
}

std::int64_t EpochPlan::len(int rank) const {
  return options_.split_batches && !options_.dispatch ? steps(0) : steps(rank);
}

std::int64_t EpochPlan::samples(std::int64_t step, int rank) const {
  return step < full_ ? per_rank_ : std::ssize(positions(step, rank));
}

std::vector<std::int64_t> EpochPlan::positions(std::int64_t step, int rank) const {
  if (step < full_ && !options_.dispatch) {
    const std::int64_t begin = step * global_ + rank * per_rank_;
    return range(begin, begin + per_rank_);
  }
  return options_.dispatch ? dispatch_tail(step, rank) : shard_tail(rank);
}

std::vector<std::int64_t> EpochPlan::shard_tail(int rank) const {
  const std::int64_t begin = full_ * global_ + rank * per_rank_;
  if (!options_.even_batches || options_.ranks == 1) return range(begin, std::min(begin + per_rank_, options_.length));
  auto positions = range(begin, begin + per_rank_);
  // Padding cycles the epoch's own first global batch, or all of it where the epoch is shorter.
  const std::int64_t cycle = std::min(global_, options_.length);
  for (auto& position : positions)
    if (position >= options_.length) position = (position - options_.length) % cycle;
  return positions;
}

std::vector<std::int64_t> EpochPlan::dispatch_tail(std::int64_t step, int rank) const {
  const std::int64_t begin = step * global_;
  const std::int64_t samples = std::min(global_, options_.length - begin);
  const bool pad = samples % options_.ranks != 0;
  const std::int64_t each = samples / options_.ranks + (pad ? 1 : 0);
  auto positions = range(begin + rank * each, begin + (rank + 1) * each);
  // At most ranks - 1 samples are repeated, from the start of the epoch.
  const std::int64_t cycle = std::min<std::int64_t>({options_.ranks, global_, options_.length});
  for (auto& position : positions)
    if (position >= options_.length) position = (position - options_.length) % cycle;
  return positions;
}

std::int64_t EpochPlan::remainder() const {
  if (options_.dispatch) return tail_ == 0 || options_.drop_last ? (full_ == 0 ? 0 : global_) : tail_;
  return options_.drop_last ? -1 : tail_;
}

}  // namespace tandem::data
