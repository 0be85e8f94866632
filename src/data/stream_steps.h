#pragma once

#include <cstdint>
#include <memory>

#include "data/rank_shards.h"
#include "data/step_source.h"
#include "data/stream_reader.h"
#include "tandem/data/detail/any_dataset.h"

namespace tandem::data {

/// Steps over an iterable dataset.
class StreamSteps final : public StepSource {
 public:
  /// Takes the parts of `shards`: each is a reader of `stream`.
  StreamSteps(std::shared_ptr<StreamReader> stream, RankShards shards, std::uint64_t seed,
              detail::CollateSamples collate);
  ~StreamSteps() override;

  void start(const EpochStart& start) override;
  Job next() override;
  std::int64_t remainder() const override { return stream_->remainder(shards_.shard(0)); }

 private:
  const std::shared_ptr<StreamReader> stream_;
  const RankShards shards_;
  const std::uint64_t seed_;
  const detail::CollateSamples collate_;
  std::uint64_t number_ = 0;
  std::int64_t epoch_ = 0;
  int sub_step_ = 0;
};

}  // namespace tandem::data
