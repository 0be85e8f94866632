#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <ATen/record_function.h>

namespace tandem::trace {

/// What a thread does for a while, as profilers show it.
enum class Event : std::uint8_t {
  micro_batch,      ///< from accumulate() to its end
  data_wait,        ///< for the next batch
  forward,          ///< of a prepared model
  backward,         ///< with what of the reduction goes on meanwhile
  all_reduce,       ///< the start of a bucket's reduction
  reduction,        ///< this rank's part of reductions that go on during backward
  gradient_wait,    ///< until all gradients are reduced
  clip,             ///< of gradients
  optimizer,        ///< an update
  weight_exchange,  ///< of an update that is divided over the ranks
  collective,       ///< any other call that all ranks make
  replay,           ///< of a compiled step
  checkpoint,       ///< saving or loading one
};

/// What the time of an event counts as.
enum class Kind : std::uint8_t { data_wait, forward, backward, communication, optimizer, other };
inline constexpr std::size_t kKinds = 6;  ///< how many kinds there are

/// What the time of `event` counts as.
Kind kind_of(Event event) noexcept;

/// What is known about a range besides its event; -1: nothing.
struct Detail {
  std::int64_t bucket = -1;  ///< of gradients, by number
  std::int64_t bytes = -1;   ///< that are communicated
};

/// While alive, adds up by kind the time that the calling thread spends in ranges. A range's time is without that of
/// the ranges inside it, so that nothing counts twice. Ranges that were open before do not count. A thread has one
/// Recorder at a time.
class Recorder {
 public:
  Recorder();
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  /// The time spent in ranges of this kind that have ended so far.
  std::chrono::nanoseconds time(Kind kind) const { return times_[static_cast<std::size_t>(kind)]; }

 private:
  friend class Range;
  std::array<std::chrono::nanoseconds, kKinds> times_{};
  class Range* innermost_ = nullptr;
};

/// Names what the calling thread does while the object is alive, for every profiler that listens: NVTX tools (domain
/// `tandem`, with rank, step, bucket and bytes as payload), LibTorch's profiler, and a Recorder. Costs some
/// nanoseconds where none does. Ranges of a thread nest, and end on it.
class [[nodiscard]] Range {
 public:
  /// Begins the range, which the destructor ends.
  explicit Range(Event event, Detail detail = {});
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  void begin_recording(Event event);
  void end_recording();

  std::string name_;                         // of `torch_`, which refers to it; empty while nobody listens to that
  std::optional<at::RecordFunction> torch_;  // for LibTorch's profiler
  const bool nvtx_;
  Recorder* const recorder_;
  Kind kind_{};
  Range* outer_ = nullptr;
  std::chrono::steady_clock::time_point begin_{};
  std::chrono::nanoseconds inside_{};  // of the ranges within
};

/// A range of optimizer updates, which are counted from 1. Both ends belong to it; the default is empty.
struct Steps {
  std::int64_t first = 0;  ///< the first one
  std::int64_t last = 0;   ///< the last one
};

/// Says that the calling thread's ranges are those of `rank` from now on, beginning with its first step. Rank 0 then
/// opens the process-wide NVTX range `profile` around the steps of `capture`.
void name_thread(int rank, Steps capture);

/// The calling thread's ranges belong to the next optimizer update from now on.
void next_step() noexcept;

}  // namespace tandem::trace
