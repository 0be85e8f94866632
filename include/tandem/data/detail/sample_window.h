#pragma once

#include <any>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "tandem/core/error.h"
#include "tandem/data/detail/dataset_access.h"
#include "tandem/data/iterable.h"

namespace tandem::data::detail {

/// Reads one epoch of an iterable dataset, and keeps those of its samples that are needed at a time: of the first step,
/// of the current one, and of the one that is read ahead. What of it depends on the samples' type.
class SampleWindow {
 public:
  virtual ~SampleWindow() = default;

  /// Begins the stream of `epoch`.
  virtual void open(std::int64_t epoch) = 0;

  /// Reads one more sample of the step after the current one; false at the end of the stream.
  virtual bool read() = 0;

  /// What was read becomes the current step; the first time it becomes the first step too.
  virtual void advance() = 0;

  /// Copies of samples, as a std::vector of them: by their positions in the stream, from `begin` on those of the
  /// current step, and before it those of the first step.
  virtual std::any samples(const std::vector<std::int64_t>& positions, std::int64_t begin) const = 0;
};

/// Of a dataset that cannot be copied, which all loaders of it read: a stream that is begun ends the one before.
struct OneStream {
  std::mutex reading;
  std::uint64_t begun = 0;  ///< how many; guarded by `reading`
};

/// That of a type of dataset.
template <class Dataset>
class SampleWindowOf final : public SampleWindow {
 public:
  using Sample = SampleOf<Dataset>;

  /// `at_once`: how many samples to ask a dataset for that gives several. `one`: null for a dataset that nobody else
  /// reads.
  SampleWindowOf(std::shared_ptr<Dataset> dataset, std::int64_t at_once, std::shared_ptr<OneStream> one)
      : dataset_(std::move(dataset)), at_once_(at_once), one_(std::move(one)) {}

  void open(std::int64_t epoch) override {
    const auto turn = turn_to_read();
    if (one_) number_ = ++one_->begun;
    stream_ = open_stream(dataset_, epoch, at_once_);
  }

  bool read() override {
    const auto turn = turn_to_read();
    if (one_ && one_->begun != number_)
      throw DataError(
          "a dataset that cannot be copied is read by another loop now, over another loader of it, which ended this "
          "one; give each loader a dataset of its own");
    auto sample = stream_();
    if (!sample) return false;
    upcoming_.push_back(std::move(*sample));
    return true;
  }

  void advance() override {
    current_ = std::exchange(upcoming_, {});
    if (first_.empty()) first_ = current_;  // padding comes from here
  }

  std::any samples(const std::vector<std::int64_t>& positions, std::int64_t begin) const override {
    std::vector<Sample> samples;
    samples.reserve(positions.size());
    for (const std::int64_t position : positions)
      samples.push_back(position >= begin ? current_[static_cast<std::size_t>(position - begin)]
                                          : first_[static_cast<std::size_t>(position)]);
    return samples;
  }

 private:
  std::unique_lock<std::mutex> turn_to_read() const {
    return one_ ? std::unique_lock(one_->reading) : std::unique_lock<std::mutex>();
  }

  const std::shared_ptr<Dataset> dataset_;
  const std::int64_t at_once_;
  const std::shared_ptr<OneStream> one_;
  std::uint64_t number_ = 0;  // among those of `one_`
  SampleStream<Sample> stream_;
  std::vector<Sample> first_, current_, upcoming_;
};

}  // namespace tandem::data::detail
