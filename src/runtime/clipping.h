// Clipping, and what else looks at gradients as they are: without the scale of mixed precision.
#pragma once

#include <vector>

#include "checkpoint/training_parts.h"
#include "runtime/divided_updates.h"
#include "runtime/rank_context.h"

namespace tandem::nn {
struct ReducedGradient;
}

namespace tandem {

/// One rank's. All members act only when optimizers do.
class Clipping {
 public:
  /// All outlive it.
  Clipping(RankContext& context, TrainingParts& parts, const DividedUpdates& updates)
      : context_(context), parts_(parts), updates_(updates) {}

  /// As the members of Accelerator.
  at::Tensor clip_norm(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type);
  void clip_values(const std::vector<at::Tensor>& parameters, double limit);
  void unscale(const optim::AcceleratedOptimizer& optimizer);
  void unscale_all();

 private:
  void unscale_gradients_of(const std::vector<at::Tensor>& parameters);
  bool clips_together(const nn::ReducedGradient& first) const;

  RankContext& context_;
  TrainingParts& parts_;
  const DividedUpdates& updates_;
};

}  // namespace tandem
