#pragma once

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// How the learning rate is made to fit a matrix [A, B]. PyTorch's adjust_lr_fn.
enum class MuonRate : std::int64_t {
  original,         ///< times sqrt(max(1, A / B))
  match_rms_adamw,  ///< times 0.2 sqrt(max(A, B)): updates as large as AdamW's, so that one rate suits all parameters
};

/// Muon's settings, of a parameter group or of all. PyTorch's names and defaults; what begins with adamw is for
/// parameters that are no matrices.
struct MuonOptions : torch::optim::OptimizerCloneableOptions<MuonOptions> {
  /// Both, from the first.
  using Betas = std::tuple<double, double>;

  /// With this learning rate.
  MuonOptions(double lr = 1e-3) : lr_(lr) {}
  TORCH_ARG(double, lr);                                   ///< of matrices and of others
  TORCH_ARG(double, weight_decay) = 0.1;                   ///< decoupled, of matrices and of others
  TORCH_ARG(double, momentum) = 0.95;                      ///< of the gradients' mean; from 0, to 1
  TORCH_ARG(bool, nesterov) = true;                        ///< looks ahead by the gradient
  TORCH_ARG(double, eps) = 1e-7;                           ///< least norm that a matrix is divided by
  TORCH_ARG(MuonRate, adjust_lr_fn) = MuonRate::original;  ///< how the rate fits a matrix
  TORCH_ARG(bool, orthogonalize) = true;                   ///< off: AdamW for matrices too, as embeddings want it
  TORCH_ARG(Betas, adamw_betas) = {0.9, 0.999};            ///< of AdamW; from 0, below 1
  TORCH_ARG(double, adamw_eps) = 1e-8;                     ///< of AdamW

 public:
  void serialize(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
  void serialize(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
  double get_lr() const override { return lr(); }                           ///< for schedulers
  void set_lr(const double rate) override { lr(rate); }                     ///< for schedulers
  /// Whether all settings are the same.
  friend bool operator==(const MuonOptions& a, const MuonOptions& b) { return a.all() == b.all(); }

 private:
  std::tuple<double, double, double, bool, double, MuonRate, bool, Betas, double> all() const {
    return {lr_, weight_decay_, momentum_, nesterov_, eps_, adjust_lr_fn_, orthogonalize_, adamw_betas_, adamw_eps_};
  }
};

/// What Muon knows of a parameter: of a matrix its momentum_buffer, of others the rest.
struct MuonParamState : torch::optim::OptimizerCloneableParamState<MuonParamState> {
  TORCH_ARG(at::Tensor, momentum_buffer);  ///< a mean of its gradients
  TORCH_ARG(std::int64_t, step) = 0;       ///< updates by AdamW
  TORCH_ARG(at::Tensor, exp_avg);          ///< AdamW's
  TORCH_ARG(at::Tensor, exp_avg_sq);       ///< AdamW's

 public:
  void serialize(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
  void serialize(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
};

/// Moves each matrix (a parameter of two dims) by the nearest orthogonal matrix to a mean of its gradients, by five
/// steps of Newton and Schulz in bfloat16; other parameters, and groups with orthogonalize(false), by AdamW. Matrices'
/// updates and states are those of PyTorch 2.11's torch.optim.Muon, which takes nothing else.
///
///     tandem::optim::Muon muon(net->parameters(),
///     tandem::optim::MuonOptions(1e-3).adjust_lr_fn(MuonRate::match_rms_adamw));
///
/// A matrix is updated as a whole, on one rank where updates are divided (Sharding).
/// Source: Muon, Keller Jordan et al., 2024; Muon is Scalable for LLM Training, arXiv:2502.16982.
class Muon : public torch::optim::Optimizer {
 public:
  /// Of parameter groups. Throws ConfigError when an option is out of range.
  explicit Muon(const std::vector<torch::optim::OptimizerParamGroup>& groups, MuonOptions defaults = {});
  /// Of one group. Throws as the other.
  explicit Muon(std::vector<at::Tensor> parameters, MuonOptions defaults = {})
      : Muon({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults)) {}

  at::Tensor step(LossClosure closure = nullptr) override;             ///< updates parameters that have a gradient
  void save(torch::serialize::OutputArchive& archive) const override;  ///< for LibTorch's archives
  void load(torch::serialize::InputArchive& archive) override;         ///< for LibTorch's archives
};

}  // namespace tandem::optim
