#pragma once

#include <any>
#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/cancel_token.h"
#include "data/epoch_steps.h"
#include "data/iterable_dataset_shard.h"
#include "tandem/data/detail/any_dataset.h"
#include "tandem/data/epoch_plan.h"

namespace tandem::data {

/// Reads a stream once for all ranks that take parts of it: streams may share what they read from (a file, a
/// connection), also those of copies of a dataset, and then two readers would each get some of the samples. Whoever
/// needs a step first reads it, for all; what the others have not taken yet is kept. Readers may call at the same time,
/// each from one thread at a time.
class StreamReader {
 public:
  /// What a reader gets of a step.
  struct Part {
    StepInfo info;                        ///< which step it is
    std::vector<std::any> samples;        ///< of each rank where one reads for all, otherwise of the reader
    std::vector<std::int64_t> positions;  ///< in the stream: of the first of each of these
    std::int64_t rows = 0;                ///< samples of each rank in the step
  };

  /// For the ranks of `plan`, or with `for_all` for one reader that takes the parts of all. `make_window` makes what
  /// reads an epoch. `token`, of the launch, outlives it; null where nobody closes it. Throws ConfigError when the
  /// options do not go together.
  StreamReader(EpochPlanOptions plan, bool for_all, std::uint64_t seed, detail::MakeWindow make_window,
               const CancelToken* token = nullptr);

  /// Begins an epoch of `reader`. What goes wrong in opening the stream, or in reading steps that are skipped, is for
  /// `next` to throw. Throws DataError when another reader began it with another epoch or step.
  void start(int reader, const EpochStart& start);

  /// The next step of the epoch that `reader` has begun; nothing at its end. Throws what reading throws, as SampleError
  /// and for each reader, and CollectiveError when the stream was begun anew before it was read as far.
  std::optional<Part> next(int reader);

  /// `reader` takes no more of its `number`-th epoch.
  void leave(int reader, std::uint64_t number);

  /// EpochPlan::remainder of the epoch that `reader` is in; -1 until its end has been read.
  std::int64_t remainder(int reader) const;

  /// Who reads next gets an error, as what the stream is made of may be gone.
  void close();

 private:
  struct Epoch {
    EpochStart start;
    // Guarded by `reading_`.
    IterableDatasetShard shard;
    ReadContext context;
    bool ended = false, given_up = false, overtaken = false;  // by a later epoch
    std::exception_ptr failure{};
    // Guarded by `mutex_`.
    int left_to_begin;                   // readers that have not begun it yet
    std::vector<std::deque<Part>> kept;  // by reader: read for it, and not taken yet
    std::vector<bool> left;              // by reader
    std::int64_t remainder = -1;
  };

  bool join(int reader, const EpochStart& start);
  std::unique_lock<std::timed_mutex> wait_for_turn(const std::function<bool()>& done);
  std::shared_ptr<Epoch>& epoch_of(int reader) { return epochs_[static_cast<std::size_t>(reader)]; }
  std::shared_ptr<Epoch> running(int reader);
  std::optional<Part> take(Epoch& epoch, int reader);
  std::shared_ptr<Epoch> open(const EpochStart& start);
  void overtake();
  std::string advance(Epoch& epoch);
  Part part(const IterableDatasetShard& shard, int reader) const;
  void read(Epoch& epoch, const std::function<void()>& function) const;
  [[noreturn]] void fail(const std::string& problem) const;

  const EpochPlanOptions plan_;
  const bool for_all_;
  const std::uint64_t seed_;
  const detail::MakeWindow make_window_;
  const CancelToken* const token_;
  std::atomic<bool> closed_{false};
  std::timed_mutex reading_;                               // held while the stream is read; the outer one of the two
  mutable std::mutex mutex_;                               // never held for long
  std::map<std::uint64_t, std::shared_ptr<Epoch>> begun_;  // that some reader has not begun yet; guarded by `mutex_`
  std::vector<std::shared_ptr<Epoch>> epochs_;             // by reader: which it is in; guarded by `mutex_`
};

}  // namespace tandem::data
