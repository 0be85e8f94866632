#pragma once

#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "nn/reducer_group.h"
#include "tandem/comm/communicator.h"

namespace tandem::comm {
class RankGroup;
}

namespace tandem::nn {

/// A parameter's gradient, and where it is when the ranks have it in one memory.
struct ReducedGradient {
  at::Tensor gradient, parameter;
  ModelReducer* reducer;  ///< null: the parameter is of no prepared model
  std::optional<SharedGradient> shared;
};

/// Of the `parameters` that have a gradient.
std::vector<ReducedGradient> reduced_gradients(const ReducerGroup& models, const std::vector<at::Tensor>& parameters);

/// The `norm_type`-norm of the gradients, of all as one vector: 0-dim, on their device, which all share, without
/// waiting for it. They are one or more. On the CPU the 2-norm of real numbers is made of the sums of squares of blocks
/// of the gradients, which their reduction has left where it could, added up in float64: the same bits with and without
/// those. A sparse gradient counts as the dense one that it stands for, and one without elements as nothing.
at::Tensor total_norm(const std::vector<ReducedGradient>& gradients, double norm_type);

/// That norm by the operators of torch::nn::utils::clip_grad_norm_: its bits. (It has another 0-norm: the number of
/// gradients.)
at::Tensor total_norm_as_torch(const std::vector<ReducedGradient>& gradients, double norm_type);

/// Scales by the operators of torch::nn::utils::clip_grad_norm_, but for sparse gradients, which that one leaves as
/// they are.
void clip_as_torch(const std::vector<ReducedGradient>& gradients, const at::Tensor& norm, double max_norm);

/// Scales the gradients as PyTorch's clip_grad_norm_ does, also where `norm` is infinite or NaN, so that their norm is
/// at most `max_norm`. Waits for no device: on a GPU neither norm nor factor comes to the host.
void clip_each(const std::vector<ReducedGradient>& gradients, const at::Tensor& norm, double max_norm);

/// Limits each value of a gradient to [-limit, limit], of a sparse one in place too: those of the dense one that it
/// stands for.
void clip_values(const at::Tensor& gradient, double limit);

/// Scales like `clip_each`, on CPU ranks, gradients that all have: where all ranks' are one memory each scales a part
/// of it. Collective; the norm is the same on all ranks then.
void clip_together(const std::vector<ReducedGradient>& gradients, const at::Tensor& norm, double max_norm,
                   comm::RankGroup& group, int rank);

}  // namespace tandem::nn
