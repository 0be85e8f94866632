#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "inputs.h"
#include "metrics.h"
#include "options.h"
#include "progress.h"
#include "tandem/tandem.h"
#include "tracking.h"
#include "unsaved.h"

namespace train {

/// What a training tells while it runs and at its end: the log of --log-json, the trackers of --log-with, the progress
/// on the terminal, and what would be lost. Takes the time, too. One a rank.
class Records {
 public:
  /// All that is given here outlives the object.
  Records(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Unsaved& unsaved);

  /// Training begins, after `steps` updates that the checkpoint `resumed_from` has; empty: none. After `judged_at` of
  /// them the network was judged last.
  void begin(std::int64_t steps, std::int64_t judged_at, const std::string& resumed_from);

  /// Whether the gradient's norm of this update is wanted. `recorded`: the step is replayed as it was recorded, so the
  /// answer must stay what it was.
  bool wants_norm(std::int64_t step, bool recorded) const;

  /// An update was made. Collective, but on GPUs nobody waits: what is told of it may be told some updates later.
  void end_update(const Update& update);

  /// What comes now is no training, until `go_on`. Tells all that is due of the updates. Collective.
  void pause();
  void go_on() { throughput_.resume(); }

  /// A line for people, when somebody reads; on rank 0.
  void tell(const std::string& line);

  /// The network was judged after so many updates.
  void judged(std::int64_t epoch, std::int64_t steps, const Verdict& verdict);

  /// An exception of this rank ends the training: tells what of the updates is known.
  void abandon() noexcept;

  /// A checkpoint of so many updates is being written to `path`.
  void saving(std::int64_t steps, const std::string& path);

  /// All updates are made. Collective.
  void end_training();

  /// For what else there is to record.
  Tracking& tracking() { return tracking_; }

  /// How long training took, and what it needed. After `end_training`.
  FinalMetrics measured() const;

  /// Whether anybody sees a sample of what the network makes.
  bool wants_sample() const;

  /// Closes all records; on rank 0. Returns what of the log could not be written; empty: all was.
  std::string finish(const FinalMetrics& metrics, tandem::io::RunStatus status);

 private:
  Sent log_of(const Update& update, double samples_per_second);
  void write(const UpdateMetrics& metrics);
  void send(Sent log, Sent means);
  void show_progress(const Update& update);
  void tell_all();

  tandem::Accelerator& accelerator_;
  const Options& options_;
  const Inputs& inputs_;
  Unsaved& unsaved_;
  std::unique_ptr<tandem::trace::Recorder> recorder_;  // null: nobody wants the times
  Progress progress_;
  Tracking tracking_;
  DeferredScalars updates_;  // of all ranks, for the log and the trackers
  DeferredScalars progress_loss_;
  Throughput throughput_;
  std::string untold_;          // lines for people that nobody has read yet
  double startup_seconds_ = 0;  // to the first update; 0: it has not been made
};

}  // namespace train
