#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/ivalue.h>
#include <torch/nn/module.h>

#include "tandem/nn/model.h"
#include "tandem/nn/named_tensors.h"

namespace tandem::optim {

/// Options of ExponentialMovingAverage.
struct ExponentialMovingAverageOptions {
  double decay = 0.999;  ///< part of the average that an update keeps, from 0 to 1
  bool warm_up = false;  ///< update t (from 0) keeps min(decay, (1 + t) / (10 + t)): early averages forget faster
};

/// A running average of a model's weights, to evaluate or save instead of the last ones.
///
/// update(): average = decay * average + (1 - decay) * weight for parameters; buffers and integer parameters are
/// copied, but for sparse buffers, which stay the model's. A buffer on the memory of a parameter is one on its average.
/// Source of the warm-up: tf.train.ExponentialMovingAverage, `num_updates`. The averages have the types of the
/// parameters; with decay near 1 these should be float32 or wider. Nothing here is collective: ranks with equal weights
/// get equal averages. Within local_sgd and join_uneven_inputs they have weights, and numbers of updates, of their own,
/// and so averages of their own; checkpoints have rank 0's. Afterwards `for (auto& [name, its] : average.averages())
/// accelerator.broadcast(its, root);` gives all ranks one's.
///
///     tandem::optim::ExponentialMovingAverage average(model);  // what prepare returned
///     …
///     optimizer.step();
///     if (accelerator.sync_gradients()) average.update();
///     …
///     { auto swapped = average.swap_in(); evaluate(model); }
class ExponentialMovingAverage {
 public:
  /// Starts from `model`'s weights; refers to them from then on. To be made after `prepare`, which may give the model
  /// other values. Throws ConfigError when the decay is out of range, and when a buffer has only a part of its memory
  /// in common with a parameter.
  explicit ExponentialMovingAverage(const torch::nn::Module& model, ExponentialMovingAverageOptions options = {});

  /// Of the weights of a prepared model, a module holder or a shared_ptr to a module, which is not empty.
  template <nn::HasModule Module>
  explicit ExponentialMovingAverage(const Module& model, ExponentialMovingAverageOptions options = {})
      : ExponentialMovingAverage(*nn::module_of(model), options) {}

  /// Takes in the model's weights; to be called after each optimizer update, outside of a step that is compiled (its
  /// replays would neither count nor warm up). Throws ConfigError while swapped.
  void update();

  /// Updates made so far.
  std::int64_t updates() const { return updates_; }

  /// Exchanges the model's values with the averages, by their memory; a second call exchanges them back. Not
  /// collective: the other ranks' models stay as they are.
  void swap();

  /// While alive, the model has the averages; afterwards its own values again. Outlived by its average.
  class [[nodiscard]] Swapped {
   public:
    /// Swaps. Throws what swap() throws, and ConfigError when they are swapped already.
    explicit Swapped(ExponentialMovingAverage& average) : average_(average) {
      average_.check_not_swapped("swap_in");
      average_.swap();
    }
    ~Swapped() { average_.swap(); }
    Swapped(const Swapped&) = delete;
    Swapped& operator=(const Swapped&) = delete;

   private:
    ExponentialMovingAverage& average_;
  };

  /// Exchanges the model's values with the averages for a scope.
  Swapped swap_in() & { return Swapped(*this); }

  /// The averages and copies themselves, by the model's names (the first one of tied weights), for a checkpoint;
  /// updates() belongs to them. Throws ConfigError while swapped.
  nn::NamedTensors averages() const;

  /// Takes over averages that were saved after `updates` updates. Throws CheckpointError that names the first tensor
  /// that is missing or has another shape, and ConfigError while swapped.
  void load(const nn::NamedTensors& averages, std::int64_t updates);

  /// The averages and updates() as one value, for Accelerator::register_for_checkpointing. Throw what averages() and
  /// load() throw.
  c10::IValue state_dict() const;

  /// Takes over what state_dict() gave.
  void load_state_dict(const c10::IValue& state);

 private:
  // Values of the model and what is kept of them, in the same order.
  struct Kept {
    std::vector<std::string> names;
    std::vector<at::Tensor> values, kept;
    void add(const std::string& name, const at::Tensor& value, const at::Tensor& keep);
  };

  void add_buffer(const std::string& name, const at::Tensor& buffer);
  void check_not_swapped(const char* call) const;

  ExponentialMovingAverageOptions options_;
  Kept averaged_, copied_;
  Kept shown_;  // buffers on the memory of averaged ones
  std::int64_t updates_ = 0;
  bool swapped_ = false;
};

}  // namespace tandem::optim
