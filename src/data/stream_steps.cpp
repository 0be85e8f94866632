#include "data/stream_steps.h"

#include <utility>

#include "tandem/rng/generators.h"

namespace tandem::data {

StreamSteps::StreamSteps(std::shared_ptr<StreamReader> stream, int reader, std::uint64_t seed,
                         detail::CollateSamples collate)
    : stream_(std::move(stream)), reader_(reader), seed_(seed), collate_(std::move(collate)) {}

StreamSteps::~StreamSteps() { stream_->leave(reader_, number_); }

void StreamSteps::start(const EpochStart& start) {
  number_ = start.number;
  epoch_ = start.epoch;
  stream_->start(reader_, start);
}

StepSource::Job StreamSteps::next() {
  auto part = stream_->next(reader_);
  if (!part) return {};
  return [this, part = std::move(*part), epoch = epoch_]() mutable {
    Step made{part.info, {}};
    for (std::size_t i = 0; i < part.samples.size(); ++i) {
      const rng::KeyedGenerator generator(seed_, epoch, kCollating + part.positions[i]);
      made.batches.push_back(collate_(std::move(part.samples[i])));
    }
    return made;
  };
}

}  // namespace tandem::data
