#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// Lion's settings, of a parameter group or of all.
struct LionOptions : torch::optim::OptimizerCloneableOptions<LionOptions> {
  /// Both, from the first.
  using Betas = std::tuple<double, double>;

  /// With this learning rate.
  LionOptions(double lr = 1e-4) : lr_(lr) {}
  TORCH_ARG(double, lr);                  ///< how far each weight moves in an update; 3 to 10 times below AdamW's
  TORCH_ARG(Betas, betas) = {0.9, 0.99};  ///< of the direction, and of what is remembered; from 0, below 1
  TORCH_ARG(double, weight_decay) = 0;    ///< decoupled, as AdamW's

 public:
  void serialize(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
  void serialize(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
  double get_lr() const override { return lr(); }                           ///< for schedulers
  void set_lr(const double rate) override { lr(rate); }                     ///< for schedulers
  /// Whether all settings are the same.
  friend bool operator==(const LionOptions& a, const LionOptions& b) {
    return a.lr_ == b.lr_ && a.betas_ == b.betas_ && a.weight_decay_ == b.weight_decay_;
  }
};

/// What Lion knows of a parameter.
struct LionParamState : torch::optim::OptimizerCloneableParamState<LionParamState> {
  TORCH_ARG(at::Tensor, exp_avg);  ///< a mean of its gradients

 public:
  void serialize(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
  void serialize(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
};

/// Moves each weight by the learning rate against the sign of a mean of its gradients, which is half of what AdamW
/// keeps. Weights of float32 and float64 on the CPU are updated in one pass over their memory. As a prepared optimizer
/// it is divided over ranks like AdamW (Sharding).
/// Source: Symbolic Discovery of Optimization Algorithms, Chen et al., arXiv:2302.06675, algorithm 2.
class Lion : public torch::optim::Optimizer {
 public:
  /// Of parameter groups. Throws ConfigError when an option is out of range.
  explicit Lion(const std::vector<torch::optim::OptimizerParamGroup>& groups, LionOptions defaults = {});
  /// Of one group. Throws as the other.
  explicit Lion(std::vector<at::Tensor> parameters, LionOptions defaults = {})
      : Lion({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults)) {}

  at::Tensor step(LossClosure closure = nullptr) override;             ///< updates parameters that have a gradient
  void save(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
  void load(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
};

}  // namespace tandem::optim
