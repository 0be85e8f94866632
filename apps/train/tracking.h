#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "losses.h"
#include "metrics.h"
#include "options.h"
#include "tandem/tandem.h"
#include "time_parts.h"

namespace train {

/// What is known of an update on one rank.
struct Update {
  std::int64_t step = 0;     ///< from 1, over all epochs
  std::int64_t epoch = 0;    ///< from 0
  Losses losses;             ///< of this rank's batches
  std::int64_t samples = 0;  ///< of this rank
  at::Tensor grad_norm;      ///< undefined: not known
  double lr = 0;
};

/// Numbers of a rank that are sent to all of them, and who takes them when they arrive.
struct Sent {
  std::vector<DeferredScalars::Scalar> scalars;  ///< empty: nothing is sent
  std::function<void(const DeferredScalars::Arrived&)> take;
  bool same_everywhere = false;  ///< each rank has the numbers that the others have
};

/// What --log-with records of the training: every --log-every updates their means, and where the ranks' time went.
/// Without --log-with it does nothing. One a rank; rank 0 writes.
class Tracking {
 public:
  /// `recorder` hears of this thread's ranges; without it the times' parts are left out. It outlives the object.
  Tracking(tandem::Accelerator& accelerator, const Options& options, const tandem::trace::Recorder* recorder);

  /// Begins the record, after `steps` updates that were made before. To be called once, before all below.
  void begin(const Options& options, std::int64_t steps);

  bool enabled() const { return every_ > 0; }

  /// Whether this update will be recorded, and its norm be asked for.
  bool wants(std::int64_t step) const { return enabled() && (step == 1 || step % every_ == 0); }

  /// An update has ended.
  void count(const Update& update);

  /// The means since the last record, to be sent; of nothing when no update was counted since.
  Sent record();

  /// How the trained network was judged, on rank 0.
  void log_verdict(const Verdict& verdict);

  /// Something has happened after so many updates.
  void log_event(const std::string& name, const std::string& detail, std::int64_t steps);

  /// For what else there is to record.
  tandem::io::TrackerSet& trackers() { return trackers_; }

  /// Number of the last update.
  std::int64_t step() const { return last_.step; }

  /// Closes the record.
  void finish(tandem::io::RunStatus status, const FinalMetrics& metrics);

 private:
  struct Means;
  void log_means(const Means& of, const DeferredScalars::Arrived& sums);

  tandem::Accelerator& accelerator_;
  const std::int64_t every_;  // 0: nothing is recorded
  tandem::io::TrackerSet trackers_;
  std::optional<TimePartsSince> parts_;
  std::vector<std::string> part_names_;  // of all ranks, by rank
  Clock::time_point recorded_ = Clock::now();
  Update last_;
  Losses losses_;  // of the updates since the last record, as the next two
  std::int64_t samples_ = 0, updates_ = 0;
};

}  // namespace train
