// Reductions of memory that only a device can read.
#pragma once

#include <cstddef>
#include <vector>

#include "tandem/comm/reduction.h"

namespace tandem::comm {

/// out[i] = op over ranks of in[rank][i], in rank order, for `count` elements, written to every output. An output may
/// be an input.
struct Reduction {
  std::vector<const void*> inputs{};  ///< by rank
  std::vector<void*> outputs{};
  std::size_t count = 0;
  ElementType type{};
  ReduceOp op{};
};

/// What enqueues them.
class ReductionKernel {
 public:
  virtual ~ReductionKernel() = default;

  /// Loads what `reduce` needs on the current device, which may wait for all that the device has to do: to be called
  /// before kernels wait there for others. Thread-safe. Throws Error.
  virtual void prepare() {}

  /// Enqueues a reduction on `stream` (of the device's kind, such as cudaStream_t), whose device can reach all memory.
  /// See comm/reduction.h for the arithmetic. Thread-safe. Throws Error.
  virtual void reduce(const Reduction& reduction, void* stream) = 0;
};

}  // namespace tandem::comm
