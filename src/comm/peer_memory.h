// The collectives of ranks whose devices can reach each other's memory, without NCCL.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include <c10/core/Event.h>

#include "comm/reduction_kernel.h"
#include "tandem/comm/communicator.h"

namespace tandem::comm {

class RankGroup;

/// What the ranks' PeerMemoryCommunicators share: a mark on each one's communication stream after the last thing that
/// it has enqueued for the others. Who follows a mark that has been set anew meanwhile follows more than it must.
class PeerMarks {
 public:
  explicit PeerMarks(int world_size, c10::DeviceType type);

  /// Marks what `rank` has enqueued on `stream`.
  void mark(int rank, c10::Stream stream);

  /// What is enqueued on `stream` from now on comes after what `rank` has marked last.
  void let_follow(c10::Stream stream, int rank);

 private:
  // LibTorch's events are not for two threads at once.
  struct Mark {
    explicit Mark(c10::DeviceType type) : event(type) {}
    std::mutex mutex;
    c10::Event event;
  };
  std::vector<std::unique_ptr<Mark>> marks_;
};

/// `rank`'s communicator on `device`; `kernel`, `marks` and `group` outlive it.
///
/// The ranks' hosts exchange pointers and events; kernels read and write the peers' memory directly, each rank reducing
/// 1/R of the elements, after the peers' streams have come to the call and before they go on. Kernels wait for nothing:
/// there is no order of launches in which they could block each other. Results are those of the CPU's communicator, in
/// rank order, to the bit as far as the device's arithmetic is. Works for several ranks on one device.
std::unique_ptr<Communicator> make_peer_memory_communicator(ReductionKernel& kernel, PeerMarks& marks, RankGroup& group,
                                                            int rank, c10::Device device);

}  // namespace tandem::comm
