// What one rank has for itself while its launch runs.
#pragma once

#include <memory>

#include <ATen/core/Generator.h>
#include <c10/core/Device.h>

#include "comm/rank_group.h"
#include "nn/accumulation_window.h"
#include "rng/shard_generators.h"
#include "tandem/comm/communicator.h"
#include "tandem/rng/generators.h"
#include "tandem/runtime/launch_config.h"

namespace tandem {

class StepObserver;

struct RankContext {
  int rank = 0;                                      ///< from 0
  const AcceleratorState* state = nullptr;           ///< of the launch
  comm::RankGroup* group = nullptr;                  ///< of the launch
  std::unique_ptr<comm::Communicator> communicator;  ///< the rank's end of it
  rng::RankGenerators generators;                    ///< its thread's defaults
  nn::AccumulationWindow window;                     ///< where it stands in its training
  StepObserver* observer = nullptr;                  ///< of its steps; may be null
  bool trigger = false;                              ///< Rank::set_trigger

  std::unique_ptr<rng::ShardGenerators> shards = {};  ///< in exact mode; otherwise null

  /// Parts of a global batch: in exact mode its logical shards, otherwise one a rank.
  int logical_ranks() const { return state->logical_ranks(); }
  int shards_each() const { return logical_ranks() / world_size(); }  ///< that fall to each rank
  int world_size() const { return state->world_size(); }
  bool is_main() const { return rank == 0; }
  int local_rank() const { return rank - group->place().first_rank; }  ///< among those of this process
  const LaunchConfig& config() const { return state->config; }
  c10::Device device() const { return state->device_of(rank); }  ///< that it computes on
};

/// The context of the calling rank thread; null on any other thread.
RankContext* current_rank() noexcept;

}  // namespace tandem
