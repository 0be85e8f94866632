#pragma once

#include <cstdint>
#include <memory>

#include "data/step_source.h"
#include "data/stream_reader.h"
#include "tandem/data/detail/any_dataset.h"

namespace tandem::data {

/// Steps over an iterable dataset.
class StreamSteps final : public StepSource {
 public:
  /// Takes the part of `reader`, one of those that `stream` is read for.
  StreamSteps(std::shared_ptr<StreamReader> stream, int reader, std::uint64_t seed, detail::CollateSamples collate);
  ~StreamSteps() override;

  void start(const EpochStart& start) override;
  Job next() override;
  std::int64_t remainder() const override { return stream_->remainder(reader_); }

 private:
  const std::shared_ptr<StreamReader> stream_;
  const int reader_;
  const std::uint64_t seed_;
  const detail::CollateSamples collate_;
  std::uint64_t number_ = 0;
  std::int64_t epoch_ = 0;
};

}  // namespace tandem::data
