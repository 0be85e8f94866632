// Backward passes within accumulation windows, and their reduction: Accelerator::backward.
#pragma once

#include <functional>

#include "checkpoint/training_parts.h"
#include "runtime/rank_context.h"
#include "runtime/step_recorder.h"
#include "runtime/training_warnings.h"
#include "runtime/uneven_inputs.h"
#include "tandem/runtime/backward_options.h"

namespace tandem {

class ExactTraining;

/// One rank's.
class BackwardPasses {
 public:
  /// All outlive it.
  BackwardPasses(RankContext& context, TrainingParts& parts, Join& join, const StepRecorder& recorder,
                 TrainingWarnings& warnings)
      : context_(context), parts_(parts), join_(join), recorder_(recorder), warnings_(warnings) {}

  /// In exact mode, whose passes are another thing.
  void set_exact(ExactTraining* exact) { exact_ = exact; }

  /// As Accelerator::backward.
  void run(const at::Tensor& loss, BackwardOptions options);
  void run(const at::Tensor& loss_sum, double items, BackwardOptions options);

  /// Ends the window that a pass outside of accumulate() is, or an optimizer's step with a closure.
  void end_window();

  /// Calls the closure of an optimizer that evaluates the loss itself. Returns the loss of all ranks. Collective.
  at::Tensor evaluate(const std::function<at::Tensor()>& closure);

 private:
  at::Tensor scaled(const at::Tensor& loss);
  void run_alone(const at::Tensor& loss, BackwardOptions options);
  void run_and_reduce(const at::Tensor& loss, BackwardOptions options, int main);
  void run_exactly(const at::Tensor& loss, BackwardOptions options, bool items);
  void run_sum(const at::Tensor& loss_sum, double all_of_window, BackwardOptions options);

  RankContext& context_;
  TrainingParts& parts_;
  Join& join_;
  const StepRecorder& recorder_;
  TrainingWarnings& warnings_;
  ExactTraining* exact_ = nullptr;
};

}  // namespace tandem
