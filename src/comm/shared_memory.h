#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "tandem/comm/reduction.h"

namespace tandem::comm {

/// What ranks can do besides that read and write each other's memory from their own threads: see
/// Communicator::shared_memory.
class SharedMemory {
 public:
  /// Communicator::start_all_reduce of a sum or mean of real floating-point elements that adds up their squares too.
  /// `squares` are a float64 tensor for each output, which gets the sums of squares of the output's blocks of
  /// kReductionBlock elements (see reduce_with_squares).
  virtual std::uint64_t start_with_squares(at::TensorList inputs, at::TensorList outputs, at::TensorList squares,
                                           ReduceOp op) = 0;

 protected:
  ~SharedMemory() = default;
};

}  // namespace tandem::comm
