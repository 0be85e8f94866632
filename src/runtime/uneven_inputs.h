// Ranks that take different numbers of steps: Accelerator::join_uneven_inputs.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "checkpoint/training_parts.h"
#include "runtime/divided_updates.h"
#include "runtime/rank_context.h"

namespace tandem {

class ExactTraining;

/// One rank's part of a join. Before each reduction the ranks tell each other what they are about to do, and those
/// whose body has ended take part with zeros.
class Join {
 public:
  /// What a rank is about to do.
  enum class Turn : std::uintptr_t { reduces_mean, reduces_items, agrees_on_step, exchanges_buffers, has_ended };

  /// All outlive it.
  Join(RankContext& context, TrainingParts& parts, DividedUpdates& updates)
      : context_(context), parts_(parts), updates_(updates) {}

  /// As Accelerator::join_uneven_inputs. Collective.
  void run(const std::function<void()>& body);

  /// In exact mode, whose reductions are another thing.
  void set_exact(ExactTraining* exact) { exact_ = exact; }

  bool active() const { return reductions_.has_value(); }  ///< within `run`

  /// Before a collective step of training: tells the others. Returns the rank whose buffers all shall have after a
  /// reduction, the first that has not ended its part of the join; 0 outside of a join. Collective.
  int meet(Turn mine);

  /// Where a join stands, to be set back to when a part of the body is tried anew.
  using Place = std::optional<std::int64_t>;
  Place place() const { return reductions_; }           ///< now
  void return_to(Place place) { reductions_ = place; }  ///< where it was

 private:
  void begin();
  void answer_until_all_have_ended();
  void answer_reduction(int main);
  void take_over_from_last();

  RankContext& context_;
  TrainingParts& parts_;
  DividedUpdates& updates_;
  ExactTraining* exact_ = nullptr;
  Place reductions_;  // of this rank, within a join
  Turn answered_{};   // what the ranks that had not ended asked for last
};

/// The state of a prepared optimizer, where it is wanted; None otherwise. Throws ConfigError for what cannot be saved.
c10::IValue state_of(const optim::AcceleratedOptimizer& optimizer, bool wanted);

/// Gives `optimizer` the `state` that rank `root` has given, unless that is None, and its count of updates. Collective.
void take_over(optim::AcceleratedOptimizer& optimizer, const c10::IValue& state, RankContext& context, int root);

/// What a sum over items is multiplied by: so that the mean over the ranks becomes the mean over the items of all
/// ranks. Throws DataError when there are none. Collective.
double factor_over_items(RankContext& context, double items);

}  // namespace tandem
