// What is said once of a training that works in another way than its author will think.
#pragma once

#include <unordered_set>

#include "checkpoint/training_parts.h"
#include "runtime/rank_context.h"

namespace tandem {

/// One rank's. Rank 0 tells LaunchConfig::on_warning.
class TrainingWarnings {
 public:
  /// Both outlive it.
  TrainingWarnings(const RankContext& context, const TrainingParts& parts) : context_(context), parts_(parts) {}

  /// A scope of Accelerator::autocast() was made.
  void note_autocast() { autocast_used_ = true; }

  /// Before a reduction, under mixed precision: of a model whose gradients have come though nobody has called it, nor
  /// made a scope of autocast(). Looks at what the passes before have reached.
  void look_for_raw_forward();

  /// After the first reduction of a model: of weights that are not those that prepare gave all ranks any more. Later
  /// ones are found where updates are divided. Collective.
  void look_for_other_weights();

  /// `optimizer` is prepared, perhaps where another one was before.
  void forget(const torch::optim::Optimizer& optimizer) { seen_.erase(&optimizer); }

  /// At an optimizer's first update: of parameters that no prepared model has, whose gradients nobody averages; of all
  /// of them where the model was not prepared.
  void look_for_foreign_parameters(const torch::optim::Optimizer& optimizer);

  /// After an update with gradients that no reduction has averaged.
  void look_for_local_gradients(const torch::optim::Optimizer& optimizer);

 private:
  bool is_heard() const { return context_.world_size() > 1 && context_.config().on_warning; }
  void tell(const std::string& text) const;
  bool was_called(const at::Tensor& parameter) const;
  bool has_local_gradient(const torch::optim::Optimizer& optimizer) const;

  const RankContext& context_;
  const TrainingParts& parts_;
  bool autocast_used_ = false;
  bool told_of_raw_forward_ = false;
  bool told_of_local_gradients_ = false;
  std::unordered_set<const torch::optim::Optimizer*> seen_;  // updates of these
  std::unordered_set<const nn::ModelReducer*> compared_;     // their weights
};

}  // namespace tandem
