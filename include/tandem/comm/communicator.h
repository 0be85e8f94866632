#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include "tandem/comm/reduction.h"

namespace tandem::comm {

struct CallRecord;
class SharedMemory;

/// One rank's end of the collectives of a launch, on tensors of its device.
///
/// All members but `rank`, `world_size`, `sums_in_rank_order` and `shares_memory` are collective: every rank calls
/// them, in the same order, with tensors of the same types and sizes. They throw CollectiveError when the ranks' calls
/// differ (on every rank, at once) and Cancelled when the launch ends because of another rank. Reductions are evaluated
/// in rank order: the same input gives the same bits. Autograd does not see them. Tensors may be non-contiguous or
/// empty.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  /// This rank, from 0.
  int rank() const noexcept { return rank_; }

  /// How many ranks take part.
  int world_size() const noexcept { return world_size_; }

  /// Replaces each tensor by its reduction over all ranks; all ranks get the same bits. No two of the tensors may
  /// overlap. bfloat16 and float16 are accumulated in float32, integers wrap around; see reduce_elements. Throws
  /// CollectiveError for a mean of integers and for max or min of complex numbers, for any number of ranks.
  void all_reduce(at::TensorList tensors, ReduceOp op) { all_reduce(tensors, tensors, op); }

  /// Reduces `inputs`, which stay as they are, over all ranks into `outputs` of the same types and sizes. An output may
  /// be its own input, but not overlap it in another way. Otherwise as all_reduce in place.
  void all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op);

  /// Starts an all_reduce and returns what `wait` takes, without waiting for the other ranks. Until `wait` has
  /// returned, inputs and outputs belong to the reduction, which keeps them alive; nobody else reads or writes them.
  ///
  /// Tensors count as rows of elements in the order of memory, so they are dense (no gaps, no overlaps), and ranks may
  /// shape them differently. Ranks start the same reductions in the same order, whatever they call between them; a
  /// difference is found by `wait` or a later start. Where `shares_memory`, ranks may give one memory as their outputs.
  std::uint64_t start_all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op);

  /// Returns when the results of the reduction that was started with this number, and of all before it, are there (on
  /// the current stream of a GPU). 0 is done at once.
  void wait(std::uint64_t started) { do_wait(started); }

  /// Finishes the reduction if no other rank has to be waited for, and returns whether it is finished. Any rank may
  /// call it any number of times.
  bool try_wait(std::uint64_t started) { return do_try_wait(started); }

  /// Forgets reductions that were started and never waited for. Ranks do so together, between two meetings.
  void forget_started() { do_forget_started(); }

  /// Replaces each tensor of rank `root` by its reduction over all ranks; those of the other ranks stay as they are.
  void reduce(at::TensorList tensors, ReduceOp op, int root);

  /// Overwrites each tensor with rank `root`'s.
  void broadcast(at::TensorList tensors, int root);

  /// Every rank's `tensor`, by rank, as copies. Ranks may differ in dim 0.
  std::vector<at::Tensor> all_gather(const at::Tensor& tensor);

  /// Reduces `input` over all ranks and returns this rank's part of the result: rows [rank * n, (rank + 1) * n) of
  /// dim 0, where n = size / world size. Throws CollectiveError when dim 0 does not divide by the world size.
  at::Tensor reduce_scatter(const at::Tensor& input, ReduceOp op);

  /// Sends `inputs[r]` to rank r and returns what this rank got, by sender, as copies. One type; any sizes.
  std::vector<at::Tensor> all_to_all(at::TensorList inputs);

  /// Returns when all ranks have called it.
  void barrier();

  /// Whether floating-point numbers are summed in rank order, however a reduction is divided into calls.
  bool sums_in_rank_order() const noexcept { return do_sums_in_rank_order(); }

  /// Whether ranks of one process can read and write each other's tensors from their own threads.
  bool shares_memory() noexcept { return shared_memory() != nullptr; }

  /// Operations of ranks that share memory; null where they do not. For Tandem's own use.
  SharedMemory* shared_memory() noexcept { return do_shared_memory(); }

 protected:
  /// Of `rank` among `world_size` ranks, for tensors on `device`.
  Communicator(int rank, int world_size, c10::Device device) : rank_(rank), world_size_(world_size), device_(device) {}

  /// Where the tensors are.
  c10::Device device() const noexcept { return device_; }

  /// Throws what start_all_reduce does of such tensors, or describes it.
  CallRecord describe_start(at::TensorList inputs, at::TensorList outputs, ReduceOp op) const;

  /// Makes an all_reduce that this communicator was asked for that of `other`, of the same rank and device.
  static void hand_on(Communicator& other, const CallRecord& call, at::TensorList inputs, at::TensorList outputs,
                      ReduceOp op) {
    other.do_all_reduce(call, inputs, outputs, op);
  }

  /// \cond internals
  // What a backend does of the members of the same names, which have checked and described the call, opened its range
  // for profilers and switched autograd off. In place where `inputs` and `outputs` are one list.
  virtual void do_all_reduce(const CallRecord& call, at::TensorList inputs, at::TensorList outputs, ReduceOp op) = 0;
  virtual std::uint64_t do_start_all_reduce(const CallRecord& call, at::TensorList inputs, at::TensorList outputs,
                                            ReduceOp op) = 0;
  virtual void do_wait(std::uint64_t started) = 0;
  virtual bool do_try_wait(std::uint64_t started) = 0;
  virtual void do_forget_started() = 0;
  virtual void do_reduce(const CallRecord& call, at::TensorList tensors, ReduceOp op, int root) = 0;
  virtual void do_broadcast(const CallRecord& call, at::TensorList tensors, int root) = 0;
  virtual std::vector<at::Tensor> do_all_gather(const CallRecord& call, const at::Tensor& tensor) = 0;
  virtual at::Tensor do_reduce_scatter(const CallRecord& call, const at::Tensor& input, ReduceOp op) = 0;
  virtual std::vector<at::Tensor> do_all_to_all(const CallRecord& call, at::TensorList inputs) = 0;
  virtual void do_barrier(const CallRecord& call) = 0;
  virtual bool do_sums_in_rank_order() const noexcept { return true; }
  virtual SharedMemory* do_shared_memory() noexcept { return nullptr; }
  /// \endcond

 private:
  const int rank_, world_size_;
  const c10::Device device_;
};

}  // namespace tandem::comm
