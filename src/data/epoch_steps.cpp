#include "data/epoch_steps.h"

#include <algorithm>
#include <string>

#include "core/word_hash.h"
#include "tandem/core/error.h"

namespace tandem::data {

StepInfo EpochSteps::info(std::int64_t step, const RankShards& shards, int sub_step) const {
  StepInfo info{.step = step, .last = step + 1 >= steps(shards.rank), .last_of_all = step + 1 >= steps(0)};
  info.remainder = remainder();
  if (info.last_of_all && info.remainder > 0) info.samples_to_keep = info.remainder;
  const int first = sub_step * shards.ranks;
  const bool cuts = info.samples_to_keep >= 0;
  return info_of_sub_step(info, sub_step, shards.present(step, [this](int rank) { return steps(rank); }),
                          cuts ? rows(step, 0, first) : 0, cuts ? rows(step, first, first + shards.ranks) : 0);
}

// Of these ranks together.
std::int64_t EpochSteps::rows(std::int64_t step, int first, int last) const {
  std::int64_t rows = 0;
  for (int rank = first; rank < last && step < steps(rank); ++rank) rows += samples(step, rank);
  return rows;
}

std::vector<std::int64_t> SampledSteps::indices(std::int64_t step, int rank) const {
  auto indices = plan_.positions(step, rank);
  for (auto& index : indices) index = order_[index];
  return indices;
}

std::uint64_t SampledSteps::fingerprint() const {
  const std::int64_t length = plan_.options().length;
  WordHash hash;
  hash.add(static_cast<std::uint64_t>(length));
  if (order_.length())
    for (std::int64_t position = 0; position < length; ++position)
      hash.add(static_cast<std::uint64_t>(order_[position]));
  return std::max<std::uint64_t>(hash.value(), 1);
}

std::int64_t batches_of_rank(std::int64_t batches, const EpochPlanOptions& options, int rank) {
  const std::int64_t rounds = batches / options.ranks, rest = batches % options.ranks;
  return rounds + ((options.dispatch || options.even_batches ? 0 : rank) < rest ? 1 : 0);
}

BatchSampledSteps::BatchSampledSteps(BatchSampler::Batches batches, EpochPlanOptions options)
    : batches_(std::move(batches)),
      options_(options),
      rounds_((static_cast<std::int64_t>(batches_.size()) + options.ranks - 1) / options.ranks) {
  for (std::size_t i = 0; i < batches_.size(); ++i)
    if (batches_[i].empty()) throw DataError("the batch sampler's batch " + std::to_string(i) + " is empty");
}

std::int64_t BatchSampledSteps::steps(int rank) const {
  return batches_of_rank(static_cast<std::int64_t>(batches_.size()), options_, rank);
}

std::vector<std::int64_t> BatchSampledSteps::indices(std::int64_t step, int rank) const {
  if (options_.dispatch) return dispatched(step, rank);
  return batches_[static_cast<std::size_t>(step * options_.ranks + rank) % batches_.size()];
}

// The real samples of all ranks in `step`.
std::vector<std::int64_t> BatchSampledSteps::round(std::int64_t step) const {
  std::vector<std::int64_t> samples;
  const auto begin = static_cast<std::size_t>(step * options_.ranks);
  for (std::size_t i = begin; i < std::min(begin + static_cast<std::size_t>(options_.ranks), batches_.size()); ++i)
    samples.insert(samples.end(), batches_[i].begin(), batches_[i].end());
  return samples;
}

std::vector<std::int64_t> BatchSampledSteps::dispatched(std::int64_t step, int rank) const {
  auto samples = round(step);
  const auto ranks = static_cast<std::size_t>(options_.ranks);
  std::size_t each = samples.size() / ranks;
  if (step + 1 == rounds_ && samples.size() % ranks != 0) {
    each += 1;
    const auto first = round(0);  // its first samples fill up
    for (std::size_t i = 0; samples.size() < each * ranks; ++i)
      samples.push_back(first[i % std::min(ranks, first.size())]);
  }
  const auto begin = samples.begin() + static_cast<std::ptrdiff_t>(each) * rank;
  return {begin, begin + static_cast<std::ptrdiff_t>(each)};
}

std::int64_t BatchSampledSteps::remainder() const {
  if (rounds_ == 0) return 0;
  if (!options_.dispatch && batches_.size() % static_cast<std::size_t>(options_.ranks) == 0) return 0;
  return static_cast<std::int64_t>(round(rounds_ - 1).size());
}

std::uint64_t BatchSampledSteps::fingerprint() const {
  WordHash hash;
  for (const auto& batch : batches_) {
    hash.add(batch.size());
    for (const std::int64_t index : batch) hash.add(static_cast<std::uint64_t>(index));
  }
  return std::max<std::uint64_t>(hash.value(), 1);
}

}  // namespace tandem::data
