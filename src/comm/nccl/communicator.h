// The collectives of a launch's ranks with NCCL, each rank on a device of its own.
#pragma once

#include <cstddef>
#include <memory>

#include <c10/core/Device.h>

#include "comm/nccl/team.h"
#include "comm/reduction_kernel.h"
#include "tandem/comm/communicator.h"

namespace tandem::comm::nccl {

class NcclCommunicator : public Communicator {
 public:
  using Communicator::Communicator;

  /// Lets `other` do what all_reduce does with at most so many bytes in all, which is no more than kSmallAllReduce.
  /// All ranks give the same number of bytes.
  virtual void reduce_small_with(std::unique_ptr<Communicator> other, std::size_t bytes) = 0;
};

/// `rank`'s communicator on `device`, the calling thread's current one: makes NCCL's in `team` and warms it up.
/// Collective; throws like Team::init.
///
/// Everything is enqueued on a stream of its own, after what the calling thread's current stream has at that time; what
/// comes later on the current stream finds the results. The host waits for the other ranks' hosts, never for a device:
/// before and after each call, but for reductions that are started in `wait` only, so that no rank is more than a step
/// ahead of another (further ahead it may fill the driver's queue and keep the rank it waits for from launching). The
/// order of all calls must be the same on all ranks, started reductions included; that is checked.
///
/// An all_reduce of at most kSmallAllReduce bytes is gathered and reduced in rank order by `kernel`, as are max and min
/// of floating-point numbers and what NCCL has no type for. Larger sums, means and products are reduced in NCCL's
/// order, which is the same in every run with the same devices, and in the elements' own type; so are the reductions
/// that are started, of gradients. `kernel` outlives it.
std::unique_ptr<NcclCommunicator> make_communicator(std::shared_ptr<Team> team, ReductionKernel& kernel,
                                                    RankGroup& group, int rank, c10::Device device);

/// Bytes, of all tensors of an all_reduce, up to which ranks may as well go through each other's memory: results are
/// the same to the bit, so that what is faster may be found out by measuring.
constexpr std::size_t kSmallAllReduce = 512 * 1024;

}  // namespace tandem::comm::nccl
