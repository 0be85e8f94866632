// Whether, and up to which size, ranks should exchange data through each other's memory: tried out when a launch
// starts.
#pragma once

#include <cstddef>

#include <c10/core/Device.h>

#include "comm/rank_group.h"
#include "tandem/comm/communicator.h"

namespace tandem::cuda {

/// Whether `mine` is true on all ranks. Collective.
bool all_agree(comm::RankGroup& group, int rank, bool mine);

/// Whether what `peers` reads and writes over every pair of ranks arrives as it was. The same on all ranks. Collective.
bool moves_bytes(comm::Communicator& peers, comm::RankGroup& group, c10::Device device);

/// Bytes of an all_reduce, at most kSmallAllReduce, up to which `peers` was as fast as `nccl`. The same on all ranks.
/// Collective.
std::size_t faster_up_to(comm::Communicator& peers, comm::Communicator& nccl, comm::RankGroup& group,
                         c10::Device device);

}  // namespace tandem::cuda
