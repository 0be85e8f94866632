#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/comm/communicator.h"

namespace tandem::nn {

/// Gradients of one type that are reduced together.
struct GradientBucket {
  std::size_t index = 0;  ///< 0 is the first to be reduced; the same on all ranks
  at::Tensor gradients;   ///< [elements], flat; those of parameters that a pass has not reached are 0
  /// The parameters' parts of `gradients`, in the shapes of the parameters. The parts of some 64 bytes between them
  /// that belong to none stay 0.
  std::vector<at::Tensor> parts;
  std::vector<at::Tensor> parameters;  ///< whose they are; other passes may divide them otherwise
};

/// Ends what a communication hook has begun.
using FinishReduction = std::function<void()>;

/// Reduces a bucket over the ranks in another way than by the mean of its elements. Every rank calls its own, with the
/// same buckets in the same order, as soon as the gradients of `bucket` are there; often within a backward pass, so it
/// waits for nobody. What it returns is called after the pass, in the same order, when all ranks are there: it may wait
/// and make any collective call, and leaves in `bucket.gradients` what all ranks' gradients shall be, the same on all.
/// `bucket` stays where it is until then.
using CommunicationHook = std::function<FinishReduction(GradientBucket& bucket, comm::Communicator& communicator)>;

}  // namespace tandem::nn
