#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

namespace tandem::nn {
class Recording;
}

namespace tandem::optim {

/// The step of torch::optim::SGD, Adam and AdamW by one kernel call for all parameters of a group (LibTorch's
/// _fused_sgd_, _fused_adam_ and _fused_adamw_, on CPU and CUDA) where LibTorch's C++ step makes several for each.
///
/// The formulas and options are those of the optimizer's own step; the results differ by rounding, because a kernel
/// contracts products and sums, and are the same bits in every run. State stays in the optimizer, in LibTorch's form:
/// either step may follow the other, and save and load work as before.
class FusedStep {
 public:
  /// `optimizer` outlives it.
  explicit FusedStep(torch::optim::Optimizer& optimizer);

  /// Updates all parameters that have a gradient. Returns true when fused kernels did so, and false when
  /// optimizer.step() did: for every other class of optimizer (derived ones too, which may step differently), types
  /// other than float32 and float64 (half types round in other places), sparse gradients, a gradient or state that does
  /// not lie in memory as its parameter does, and parameters that are listed twice. Throws what optimizer.step()
  /// throws. Not collective.
  ///
  /// `recording`: of the compiled step that this is part of, if any. Then the learning rate and the count of updates
  /// are in the device's memory, where each replay finds the optimizer's own. A step that is recorded changes nothing
  /// and has no other step: it returns false instead, also for float64 parameters, as that memory holds float32. For
  /// float32 parameters on GPUs learning rates are rounded to that in every step, so results are the same either way.
  bool step(nn::Recording* recording = nullptr);

  /// Whether class, types and gradients of all parameters are such that `step` can be fused. Which step an optimizer
  /// takes does not depend on how its parameters are divided over ranks then.
  bool suits_all() const;

 private:
  enum class Kind : std::uint8_t { other, sgd, adam, adamw };

  // What the tensors of one kernel call have in common.
  struct Common {
    const torch::optim::OptimizerOptions* options;  // of their group
    c10::Device device;
    c10::ScalarType type;
    std::int64_t updates;  // that they have had; for SGD only whether they have had any
    bool operator==(const Common&) const = default;
  };

  // The tensors of one kernel call, in the same order. Emptied after each step: references would keep gradients alive.
  struct Batch {
    explicit Batch(const Common& common) : common(common) {}
    Common common;
    std::vector<at::Tensor> parameters, gradients;
    std::vector<at::Tensor> averages, square_averages, largest_square_averages;  // SGD: averages are its momentum
    std::vector<at::Tensor> steps;
    std::vector<torch::optim::OptimizerParamState*> states;
    at::Tensor step;  // 0-dim float32, which all of `steps` are
    at::Tensor lr;    // the same, for a step that is recorded
  };

  bool records() const;
  bool rate_is_a_tensor(Batch& batch) const;
  bool step_fused();
  bool every_parameter_comes_once();
  Batch& batch_for(const Common& common);
  void empty_batches();
  at::Tensor gradient_of(const at::Tensor& parameter);

  bool gather_sgd();
  void update_sgd(Batch& batch);
  template <class Options, class State>
  bool gather_adam();
  template <class Options, class State>
  void update_adam(Batch& batch);

  template <class Options, class State>
  void record(const Batch& batch);

  torch::optim::Optimizer& optimizer_;
  Kind kind_;
  nn::Recording* recording_ = nullptr;  // of the current step
  std::vector<Batch> batches_;          // the first used_ are filled; the others are kept for their memory
  std::size_t used_ = 0;
  std::vector<const void*> parameters_;  // that were looked at for repetitions
  bool repeated_ = false;
  std::unordered_map<const void*, at::Tensor> readable_;  // gradients that are lent, as of the last step
};

}  // namespace tandem::optim
