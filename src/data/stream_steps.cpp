#include "data/stream_steps.h"

#include <utility>

#include "tandem/rng/generators.h"

namespace tandem::data {

StreamSteps::StreamSteps(std::shared_ptr<StreamReader> stream, RankShards shards, std::uint64_t seed,
                         detail::CollateSamples collate)
    : stream_(std::move(stream)), shards_(shards), seed_(seed), collate_(std::move(collate)) {}

StreamSteps::~StreamSteps() {
  for (int i = 0; i < shards_.each; ++i) stream_->leave(shards_.shard(i), number_);
}

void StreamSteps::start(const EpochStart& start) {
  number_ = start.number;
  epoch_ = start.epoch;
  sub_step_ = 0;
  for (int i = 0; i < shards_.each; ++i) stream_->start(shards_.shard(i), start);
}

StepSource::Job StreamSteps::next() {
  const int sub_step = sub_step_;
  auto part = stream_->next(shards_.shard(sub_step));
  if (!part) return {};
  sub_step_ = (sub_step + 1) % shards_.each;
  // All parts of a stream's step are of one size.
  const std::int64_t rows = part->rows * shards_.ranks;
  part->info = info_of_sub_step(part->info, sub_step, shards_.each, sub_step * rows, rows);
  return [this, part = std::move(*part), epoch = epoch_]() mutable {
    Step made{part.info, {}, part.rows};
    for (std::size_t i = 0; i < part.samples.size(); ++i) {
      const rng::KeyedGenerator generator(seed_, epoch, kCollating + part.positions[i]);
      made.batches.push_back(collate_(std::move(part.samples[i])));
    }
    return made;
  };
}

}  // namespace tandem::data
