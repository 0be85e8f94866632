// What one rank of a training in exact mode has computed, window by window: for check_exact.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/training_parts.h"
#include "runtime/operator_trace.h"
#include "runtime/rank_context.h"
#include "tandem/core/error.h"

namespace tandem {

/// Leaves the body when enough windows are recorded.
class EnoughWindows : public Cancelled {
 public:
  using Cancelled::Cancelled;
};

/// Of one accumulation window.
struct TracedWindow {
  std::vector<std::pair<std::string, std::uint64_t>> state;  ///< of weights and buffers after it, by name
  std::map<int, std::uint64_t> generators;                   ///< after it, by logical shard
  std::map<int, std::vector<TracedCall>> calls;              ///< in it, by logical shard
};

/// One rank's, on its thread. ExactTraining tells it where it is.
class ExactTrace {
 public:
  /// `most`: windows to record. All outlive it.
  ExactTrace(RankContext& context, const TrainingParts& parts, std::int64_t most);

  /// A window begins, or the body has ended: records the state after the one before. Throws EnoughWindows when one more
  /// than all to record has ended, so that all ranks have recorded theirs: they have met in its reduction.
  void end_window();

  void begin_micro_batch();  ///< of the shard whose turn it is
  void before_pass();
  void after_pass();
  void end_micro_batch();  ///< what was called after its last pass is not its own

  std::vector<TracedWindow> take() { return std::move(windows_); }

 private:
  void add_state(TracedWindow& window) const;
  bool is_done() const { return static_cast<std::int64_t>(windows_.size()) == most_; }

  RankContext& context_;
  const TrainingParts& parts_;
  const std::int64_t most_;
  OperatorTrace operators_;
  TracedWindow open_;
  bool is_open_ = false;  // a window has begun
  std::vector<TracedWindow> windows_;
};

}  // namespace tandem
