#pragma once

#include <memory>

#include "tandem/comm/communicator.h"

namespace tandem::comm {

class RankGroup;

/// Collectives between CPU ranks, which read each other's tensors directly: each rank reduces 1/R of the elements out
/// of all ranks' tensors and writes the result into all of them. `group` outlives the communicator.
std::unique_ptr<Communicator> make_shared_memory_communicator(RankGroup& group, int rank);

}  // namespace tandem::comm
