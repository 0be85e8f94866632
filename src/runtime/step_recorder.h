// What training does about steps that are recorded and replayed: Accelerator::compile_step.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "checkpoint/training_parts.h"
#include "runtime/rank_context.h"
#include "runtime/recorded_step.h"
#include "runtime/uneven_inputs.h"

namespace tandem {

/// One rank's.
class StepRecorder {
 public:
  /// All outlive it.
  StepRecorder(RankContext& context, const TrainingParts& parts, const Join& join)
      : context_(context), parts_(parts), join_(join) {}

  /// A graph for a step of what was prepared. It does not outlive the recorder.
  std::unique_ptr<detail::StepGraph> make_graph(const CompileStepOptions& options) const;

  /// Has the gradients of a backward pass that is recorded reduced when it was replayed.
  void record_reduction(nn::Recording& recording) const;

 private:
  std::optional<std::string> obstacle(const CompileStepOptions& options) const;

  RankContext& context_;
  const TrainingParts& parts_;
  const Join& join_;
};

}  // namespace tandem
