// Work on files, whose failure on one rank is that of all.
#pragma once

#include <functional>

#include "comm/rank_group.h"

namespace tandem {

/// Runs `check`, and throws on all ranks what it throws on any, as a CheckpointError or ConfigError. Collective.
void check_on_all(comm::RankGroup& group, int rank, const std::function<void()>& check);

/// Runs `work` on rank 0 while the others wait. Throws as check_on_all. Collective.
void on_main_for_all(comm::RankGroup& group, int rank, const std::function<void()>& work);

}  // namespace tandem
