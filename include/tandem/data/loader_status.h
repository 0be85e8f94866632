#pragma once

#include <cstdint>
#include <vector>

namespace tandem::data {

/// Where a loader stands in its epoch, for accumulation and metrics.
struct LoaderStatus {
  bool last_step_of_all = false;     ///< no rank has a step after this one
  bool end_of_dataloader = false;    ///< true from just before this rank's last step is handed out
  std::int64_t remainder = -1;       ///< EpochPlan::remainder of the epoch
  std::int64_t samples_to_keep = 0;  ///< rows of this step that gather_for_metrics keeps; 0: all
};

/// The loaders that a rank is iterating over, the innermost last.
class ActiveLoaders {
 public:
  void enter(const LoaderStatus* status) { stack_.push_back(status); }
  void leave(const LoaderStatus* status) { std::erase(stack_, status); }

  /// Status of the innermost loader; null outside of any.
  const LoaderStatus* current() const { return stack_.empty() ? nullptr : stack_.back(); }

 private:
  std::vector<const LoaderStatus*> stack_;
};

}  // namespace tandem::data
