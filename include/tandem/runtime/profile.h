#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace tandem {

/// What Accelerator::profile records.
struct ProfileOptions {
  std::string directory;  ///< where trace.json goes; made if it is missing
  /// Optimizer updates of the body that are recorded, from 1; the last one too. An update begins where the one before
  /// it ended, with the wait for its data. They are counted by the windows of accumulate(), so a body without has none:
  /// it can be recorded as a whole, which is the default.
  std::int64_t first_step = 1;

  /// The last update that is recorded.
  std::int64_t last_step = std::numeric_limits<std::int64_t>::max();
};

/// Where the time of one rank's thread went. On a GPU that is the time to launch the work; the trace shows the work.
struct RankProfile {
  std::int64_t steps = 0;  ///< that were recorded
  double seconds = 0;      ///< of all of them
  // Seconds of these, without what was done in between:
  double data_wait = 0,      ///< waiting for batches
      forward = 0,           ///< of prepared models
      backward = 0;          ///< without the reductions of gradients that the thread waits for
  double communication = 0;  ///< exposed: while this thread did nothing else
  double optimizer = 0;      ///< clipping included
  double other = 0;          ///< the rest: losses, schedules, the body's own
};

/// What Accelerator::profile returns, the same on all ranks.
struct Profile {
  std::string trace;               ///< path of the file; empty when the body ended before first_step
  std::vector<RankProfile> ranks;  ///< by rank; empty then

  /// One line a rank: its steps, milliseconds a step, and shares of its time.
  std::string table() const;
};

/// Initialises LibTorch's profiler, which takes tens of milliseconds. It wants that from the thread that loaded it, the
/// program's first: when Accelerator::profile has to do it, LibTorch writes a complaint to standard error, and works.
void prepare_profiler();

}  // namespace tandem
