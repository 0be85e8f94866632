#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/comm/call_record.h"
#include "tandem/comm/rank_group.h"

namespace tandem::comm {

/// One rank's end of the collectives of a launch, on tensors of its device.
///
/// All members but `rank` and `world_size` are collective: every rank calls them, in the same order, with tensors of
/// the same types and sizes. They throw CollectiveError when the ranks' calls differ (on every rank, at once) and
/// Cancelled when the launch ends because of another rank. Reductions are evaluated in rank order: the same input gives
/// the same bits. Autograd does not see them. Tensors may be non-contiguous or empty.
class Communicator {
 public:
  virtual ~Communicator() = default;

  /// This rank, from 0.
  virtual int rank() const = 0;

  /// How many ranks take part.
  virtual int world_size() const = 0;

  /// Replaces each tensor by its reduction over all ranks; all ranks get the same bits. No two of the tensors may
  /// overlap. bfloat16 and float16 are accumulated in float32; see reduce_elements for integers and bool. Throws
  /// CollectiveError for a mean of integers and for max or min of complex numbers, for any number of ranks.
  void all_reduce(at::TensorList tensors, ReduceOp op) { all_reduce(tensors, tensors, op); }

  /// The same, from `inputs`, which stay as they are, into `outputs` of the same types and sizes. An output may be its
  /// own input, but not overlap it in another way.
  virtual void all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op) = 0;

  /// Starts an all_reduce and returns what `wait` takes, without waiting for the other ranks. Until `wait` has
  /// returned, inputs and outputs belong to the reduction, which keeps them alive; nobody else reads or writes them.
  ///
  /// Tensors count as rows of elements in the order of memory, so they are dense (no gaps, no overlaps), and ranks may
  /// shape them differently. Ranks start the same reductions in the same order, whatever they call between them; a
  /// difference is found by `wait` or a later start.
  std::uint64_t start_all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op) {
    return start_all_reduce(inputs, outputs, op, {});
  }

  /// The same where `shares_memory`. Ranks may give one memory as their outputs. `squares`, if there are any, are a
  /// float64 tensor for each output, which gets the sums of squares of its blocks of kReductionBlock elements, of a sum
  /// or mean of real floating-point elements (see reduce_with_squares).
  virtual std::uint64_t start_all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op,
                                         at::TensorList squares) = 0;

  /// Returns when the results of the reduction that was started with this number, and of all before it, are there (on
  /// the current stream of a GPU). 0 is done at once.
  virtual void wait(std::uint64_t started) = 0;

  /// Waits if it need not wait for anybody; returns whether it has. To be called any number of times, by any rank.
  virtual bool try_wait(std::uint64_t started) = 0;

  /// Whether ranks can read and write each other's tensors.
  virtual bool shares_memory() const { return false; }

  /// Forgets reductions that were started and never waited for. Ranks do so together, between two meetings.
  virtual void forget_started() = 0;

  /// Replaces each tensor of rank `root` by its reduction over all ranks; those of the other ranks stay as they are.
  virtual void reduce(at::TensorList tensors, ReduceOp op, int root) = 0;

  /// Overwrites each tensor with rank `root`'s.
  virtual void broadcast(at::TensorList tensors, int root) = 0;

  /// Every rank's `tensor`, by rank, as copies. Ranks may differ in dim 0.
  virtual std::vector<at::Tensor> all_gather(const at::Tensor& tensor) = 0;

  /// Reduces `input` over all ranks and returns this rank's part of the result: rows [rank * n, (rank + 1) * n) of
  /// dim 0, where n = size / world size. Throws CollectiveError when dim 0 does not divide by the world size.
  virtual at::Tensor reduce_scatter(const at::Tensor& input, ReduceOp op) = 0;

  /// Sends `inputs[r]` to rank r and returns what this rank got, by sender, as copies. One type; any sizes.
  virtual std::vector<at::Tensor> all_to_all(at::TensorList inputs) = 0;

  /// Returns when all ranks have called it.
  virtual void barrier() = 0;
};

/// Throws CollectiveError when `op` is not defined for `type`, or is no ReduceOp.
void check_reduction(ReduceOp op, c10::ScalarType type);

/// What elements of `type` are to reductions. Throws CollectiveError for those that cannot be reduced.
ElementType element_type(c10::ScalarType type);

}  // namespace tandem::comm
