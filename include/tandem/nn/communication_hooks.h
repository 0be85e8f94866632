#pragma once

#include <cstdint>

#include "tandem/nn/gradient_bucket.h"

namespace tandem::nn {

/// Ready-made ways to reduce gradients, to be set on every rank: `model.reducer().set_communication_hook(...)`. Each
/// rank makes a hook of its own. All give the mean over the ranks, more or less exactly.

/// Reduces float32 and float64 buckets as bfloat16: half or a quarter of the bytes, which a reduction within one
/// machine's memory reads and writes. Each rank's gradients are rounded once, then their mean, which is formed in
/// float32: values are off by at most 2^-8 of the mean of their magnitudes, and by as much of the result. Other types
/// are reduced as they are. Takes a bfloat16 copy of each bucket from its start to the end of the pass.
CommunicationHook bf16_compression();

/// Reduces as float16 instead: off by 2^-11, and in absolute terms by 2^-25 below 2^-14. A gradient above 65504 becomes
/// infinite.
CommunicationHook fp16_compression();

/// Options of power_sgd, with the names and defaults of torch.distributed.
struct PowerSgdOptions {
  int matrix_approximation_rank = 1;        ///< of the matrix that stands for a gradient; higher is more exact
  std::int64_t start_powerSGD_iter = 1000;  ///< a parameter's first reductions, which are plain means
  double min_compression_rate = 2;          ///< gradients that would shrink by no more than this are not compressed
  bool use_error_feedback = true;           ///< what a reduction leaves out is added to the rank's next gradient
  bool warm_start = true;                   ///< begin from the last Q; off: from a random one each time
  std::uint64_t random_seed = 0;            ///< of the random Qs; the same on all ranks
};

/// Reduces gradients as matrices of low rank (Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient
/// Compression for Distributed Optimization", NeurIPS 2019, algorithm 1). Of a gradient M, as a matrix [n, m] where n
/// is its dim 0, ranks exchange P = M Q [n, r] and Q = Mᵀ P [m, r] and get P Qᵀ, with one step of the power iteration
/// for the mean of all M: P, the mean over the ranks, is made orthonormal in between, and so is the Q that it begins
/// from.
///
/// Plain means are: a parameter's first start_powerSGD_iter reductions, gradients of fewer than 2 dimensions or of
/// other types than float32 and float64, and those where (n + m) r min_compression_rate >= n m. All else is exact, but
/// for rounding, only when the mean gradient (with error feedback: with the errors in it) has a matrix rank of at most
/// r. Elsewhere error feedback lets later reductions make up for it: of a constant gradient, the average over the
/// steps becomes the gradient.
///
/// The first call starts one reduction, of the plain gradients and all P of a bucket; the Q follow when the pass has
/// ended, bucket by bucket. Every rank computes the result from the same factors by the same operations.
///
/// A hook has a state for each parameter, which stays when the buckets change, and begins anew when the parameter's
/// type or shape does: its count of reductions, with error feedback a tensor of the gradient's size, with warm start Q.
/// So each rank needs a hook of its own; one hook may serve several models of its rank. During a pass P, at its end Q
/// and one gradient come on top. Values that are not finite (of a loss scale that is too high, for example) are not
/// carried on: they count as 0 in error and Q. The state is not saved anywhere.
///
/// Throws ConfigError when matrix_approximation_rank is below 1, start_powerSGD_iter below 0, or min_compression_rate
/// not a number above 0.
CommunicationHook power_sgd(const PowerSgdOptions& options = {});

}  // namespace tandem::nn
