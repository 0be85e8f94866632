#pragma once

#include <cstdint>
#include <functional>

namespace tandem::nn {

/// Averages the models of ranks that train on their own after every `steps` windows (Stich, "Local SGD Converges Fast
/// and Communicates Little", ICLR 2019). Accelerator::local_sgd makes one, of all prepared models.
///
///     accelerator.local_sgd(8, [&](nn::LocalSgd& local) {
///       for (auto& [images, labels] : batches) {
///         auto window = accelerator.accumulate(model);
///         accelerator.backward(loss_of(model(images), labels));
///         optimizer.step();
///         optimizer.zero_grad();
///         local.step();
///       }
///     });
///
/// Within it backward passes are not reduced (not by trigger_sync_in_backward either), while windows, clipping,
/// optimizers and schedulers go on as ever; backward(loss_sum, items) makes the mean over this rank's items, 0 where it
/// has none. Gradients that no optimizer has used by its end stay with their rank, and are reduced with those of the
/// next backward. Updates are not divided over the ranks meanwhile. When it ends all ranks get the states of rank 0's
/// optimizers, without which the next steps would part their weights again.
///
/// An average of a model's weights over the ranks: parameters that require a gradient, and buffers of floating-point
/// and complex types, become their mean. The others, as frozen parameters and counts of batches, become rank 0's.
/// Buffers stay each rank's own when GradientReducerOptions::broadcast_buffers is off. The states of optimizers, as
/// their momenta, stay each rank's own until the end.
class LocalSgd {
 public:
  /// `closes_window` tells whether this micro-batch closes its window, and `average` averages the models; `steps` is 1
  /// or more.
  LocalSgd(int steps, std::function<bool()> closes_window, std::function<void()> average);
  LocalSgd(const LocalSgd&) = delete;
  LocalSgd& operator=(const LocalSgd&) = delete;

  /// Is to be called in each micro-batch, after the optimizer's step. Micro-batches that do not close their window do
  /// not count; the models are averaged after every `steps` that do. Collective then.
  void step();

 private:
  const int steps_;
  const std::function<bool()> closes_window_;
  const std::function<void()> average_;
  std::int64_t windows_ = 0;  // closed
};

}  // namespace tandem::nn
