// Exact mode: what a rank does that computes several logical shards one after the other.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "checkpoint/training_parts.h"
#include "nn/exact_buffers.h"
#include "nn/exact_gradients.h"
#include "runtime/rank_context.h"
#include "runtime/uneven_inputs.h"

namespace tandem {

class ExactTrace;

/// One rank's: gradients, buffers and generators of its shards, along the micro-batches of the accumulation window.
class ExactTraining {
 public:
  /// All outlive it.
  ExactTraining(RankContext& context, TrainingParts& parts, Join& join);

  /// Throws ConfigError when the batch that the loader gave last is not that of the shard whose turn it is.
  void check_turn() const;

  /// Whether the rank has no further batch of the global one that its loader has given a batch of.
  bool is_last_here() const;

  /// When the accumulation window has begun a micro-batch.
  void begin_micro_batch();

  /// Before the window ends it.
  void end_micro_batch() noexcept;

  /// Around a backward pass, of a mean or of a sum over `items`. `before_pass` throws ConfigError for what exact mode
  /// cannot have.
  void before_pass(bool items);
  void after_pass();

  /// Notes items of backward(loss_sum, items).
  void use_items(double items);

  /// When the window's last pass, or one of its last, is made: gives the parameters the sum over all shards, divided by
  /// their number, or with `items` by that of all items. Collective.
  void reduce(bool items);

  /// Takes part in `reduce` of the others when this rank's body has ended. Collective.
  void answer_reduction(bool items);

  /// Takes part in the others' exchange of buffers. Collective.
  void answer_exchange();

  /// Forgets what the window has so far, as where a training is tried anew.
  void forget_window();

  /// In a micro-batch that has closed its window: its buffers are those of the next one.
  void finish_buffers() { buffers_.end_step(); }

  /// Has what is computed recorded from here on; null: no more. `trace` outlives it, or that.
  void record_in(ExactTrace* trace) { trace_ = trace; }

  /// The generators are those of the shard that computes, or whose batch the loader gave last.
  void choose_generators();

 private:
  double factor(bool items);
  void finish_step();

  RankContext& context_;
  TrainingParts& parts_;
  Join& join_;
  nn::ExactGradients gradients_;
  nn::ExactBuffers buffers_;
  std::vector<double> items_;  // by sub-step, of the window
  ExactTrace* trace_ = nullptr;
  bool exchanges_ = false;  // a step has ended whose buffers are not exchanged
};

}  // namespace tandem
