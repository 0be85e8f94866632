#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// Adafactor's settings, of a parameter group or of all. PyTorch's names and defaults.
struct AdafactorOptions : torch::optim::OptimizerCloneableOptions<AdafactorOptions> {
  /// Least mean square of gradients (none: the epsilon of the parameter's type), and least size of a parameter that
  /// updates go by.
  using Eps = std::tuple<std::optional<double>, double>;

  /// With this learning rate.
  AdafactorOptions(double lr = 1e-2) : lr_(lr) {}
  TORCH_ARG(double, lr);                       ///< the largest; falls as 1 / sqrt(updates), times a parameter's size
  TORCH_ARG(double, beta2_decay) = -0.8;       ///< 1 - beta2 is updates to this power; at most 0
  TORCH_ARG(Eps, eps) = {std::nullopt, 1e-3};  ///< see Eps
  TORCH_ARG(double, d) = 1.0;                  ///< updates' root mean square is cut to this; 1 or more
  TORCH_ARG(double, weight_decay) = 0;         ///< decoupled, as AdamW's

 public:
  void serialize(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
  void serialize(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
  double get_lr() const override { return lr(); }                           ///< for schedulers
  void set_lr(const double rate) override { lr(rate); }                     ///< for schedulers
  /// Whether all settings are the same.
  friend bool operator==(const AdafactorOptions& a, const AdafactorOptions& b) {
    return a.lr_ == b.lr_ && a.beta2_decay_ == b.beta2_decay_ && a.eps_ == b.eps_ && a.d_ == b.d_ &&
           a.weight_decay_ == b.weight_decay_;
  }
};

/// What Adafactor knows of a parameter: of matrices (and more dims) means of rows and columns, of others all.
struct AdafactorParamState : torch::optim::OptimizerCloneableParamState<AdafactorParamState> {
  TORCH_ARG(std::int64_t, step) = 0;  ///< updates
  TORCH_ARG(at::Tensor, row_var);     ///< mean squares [..., A, 1]
  TORCH_ARG(at::Tensor, col_var);     ///< mean squares [..., 1, B]
  TORCH_ARG(at::Tensor, variance);    ///< mean squares of a vector

 public:
  void serialize(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
  void serialize(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
};

/// Like Adam without a mean of gradients, and with one number for each row and column of a matrix in place of one for
/// each weight: it keeps next to nothing. Updates and states are those of PyTorch 2.11's torch.optim.Adafactor.
/// Source: Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, Shazeer and Stern, arXiv:1804.04235.
class Adafactor : public torch::optim::Optimizer {
 public:
  /// Of parameter groups. Throws ConfigError when an option is out of range.
  explicit Adafactor(const std::vector<torch::optim::OptimizerParamGroup>& groups, AdafactorOptions defaults = {});
  /// Of one group. Throws as the other.
  explicit Adafactor(std::vector<at::Tensor> parameters, AdafactorOptions defaults = {})
      : Adafactor({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults)) {}

  at::Tensor step(LossClosure closure = nullptr) override;             ///< updates parameters that have a gradient
  void save(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
  void load(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
};

}  // namespace tandem::optim
