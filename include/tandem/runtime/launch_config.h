#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include <c10/core/Device.h>

#include "tandem/backend/transport.h"
#include "tandem/checkpoint/checkpoint_options.h"
#include "tandem/comm/nodes.h"
#include "tandem/core/warning_sink.h"
#include "tandem/data/data_loader_configuration.h"
#include "tandem/nn/gradient_reducer_options.h"
#include "tandem/nn/precision.h"
#include "tandem/optim/grad_scaler.h"
#include "tandem/trace/range.h"

namespace tandem {

class Backend;
class LaunchedNode;

/// What the ranks share: the optimizers' updates and state, and the weights. Results do not depend on it, to the bit.
enum class Sharding {
  none,       ///< every rank has all weights and the whole state of its optimizers
  optimizer,  ///< each rank updates a part of the weights, and has the optimizer state of these (ZeRO stage 1)
  automatic   ///< CPU ranks: as `optimizer`, and one copy of the weights where that is exact; GPUs: none
};

/// Exact mode: every global batch is cut into logical shards, of which each rank computes as many, one after the other,
/// and all that is added up over them is added up in one order. So the weights, and whatever else comes of a training,
/// are the same bits on any number of ranks that divides them. See docs/exact.md.
struct ExactOptions {
  int logical_ranks = 8;  ///< shards of a global batch: a power of two, from 1 to 1024
};

/// What to launch. Nothing given: all GPUs, or CPU ranks where no GPU is usable. Give at most one of gpus, devices,
/// cpu.
struct LaunchConfig {
  std::optional<int> gpus{};   ///< the first N GPUs, a rank each
  std::vector<int> devices{};  ///< these GPUs, a rank each; one that is named several times has several ranks
  std::optional<int> cpu{};    ///< N CPU ranks; ranks may outnumber cores
  std::uint64_t seed = 42;     ///< master seed; rank 0's generators are seeded with it
  /// What prepared models compute in.
  Precision mixed_precision = Precision::no;
  /// Loss scaling under Precision::fp16.
  optim::GradScalerOptions grad_scaler{};
  Transport transport = Transport::automatic;  ///< of GPU ranks
  /// Whether GPUs may compute float32 products and convolutions in TF32, which is faster and keeps 10 bits of the 23;
  /// nothing: as LibTorch is set (convolutions may, products may not). While the launch runs, for the whole process.
  std::optional<bool> tf32{};
  /// Has LibTorch's allocator for GPUs grow its segments in place, which wastes less memory where sizes vary. From then
  /// on, for the whole process; replaces what PYTORCH_ALLOC_CONF says.
  bool expandable_segments = false;
  std::shared_ptr<const Backend> backend{};  ///< what `gpus` and `devices` are devices of; null: NVIDIA's GPUs
  int threads_per_rank = 0;                  ///< intra-op threads of a CPU rank, up to 1024; 0: cores / ranks
  /// Trains in exact mode. Then threads_per_rank is 1 where it is not given; LibTorch computes by deterministic
  /// algorithms, in the whole process while the launch runs, and operators that have none are errors that name them;
  /// and batch sizes of loaders are those of a logical shard. A launch that is not exact cannot run in the process at
  /// the same time.
  std::optional<ExactOptions> exact{};
  bool pin_threads = false;             ///< bind rank r to its share of the cores; GPU ranks are near their GPU anyway
  bool keep_tensor_memory = true;       ///< a rank's CPU tensors reuse memory; see docs/training.md
  bool device_placement = true;         ///< prepare moves models, and loaders their batches, to the rank's device
  int gradient_accumulation_steps = 1;  ///< micro-batches an optimizer update
  bool sync_with_dataloader = true;     ///< the end of a loader closes the accumulation window
  bool fused_optimizers = true;         ///< prepared SGD, Adam and AdamW step by optim::FusedStep, not their own step
  Sharding sharding = Sharding::automatic;        ///< see optim::ShardedOptimizer
  nn::GradientReducerOptions gradient_reducer{};  ///< of prepared models
  trace::Steps nvtx_capture{};                    ///< updates that tools shall capture, see profiles/
  int scheduler_steps_per_update = 1;  ///< inner scheduler steps an update; Accelerate's scripts expect world size
  data::DataLoaderConfiguration data_loader{};                   ///< how loaders divide their data
  CheckpointOptions checkpoints{};                               ///< where save_state saves without a directory
  std::chrono::milliseconds timeout = std::chrono::minutes(10);  ///< longest wait for another rank
  /// Hears what is worth knowing and no error, such as a link between GPUs that does not work and is gone around.
  /// Called on ranks' threads, one at a time.
  WarningSink on_warning{};
  std::stop_token cancel{};  ///< ends the launch from outside, as a failure would
  /// This process's place in a training on several machines; nothing: it trains alone. See nodes_from_environment() and
  /// docs/machines.md.
  std::optional<Nodes> nodes{};
};

/// The machine and the ranks of a launch: examined once, before any rank starts, and immutable.
struct PartialState {
  std::shared_ptr<const Backend> backend;  ///< of the ranks' devices
  std::string backend_name;                ///< as messages show it, "CPU"
  std::vector<c10::Device> devices;        ///< of this process's ranks
  int cores = 1;                           ///< that this process may use at a time
  int threads_per_rank = 1;                ///< intra-op threads
  std::string libtorch_version;            ///< such as "2.11.0"

  int node = 0;  ///< this process, from 0: see LaunchConfig::nodes
  /// Ranks of each node; empty for a process that trains alone.
  std::vector<int> ranks_of_nodes{};

  /// The connection to the other nodes, for one launch; null for a process that trains alone.
  std::shared_ptr<LaunchedNode> joined{};

  int local_ranks() const { return static_cast<int>(devices.size()); }  ///< of this process
  int first_rank() const;  ///< of this process's ranks, which have the numbers from it on
  int world_size() const;  ///< how many ranks there are, on all nodes
  /// The device of one of this process's ranks, by its number among all.
  c10::Device device_of(int rank) const { return devices[static_cast<std::size_t>(rank - first_rank())]; }
};

/// PartialState and how to train on it; shared by all ranks of a launch.
struct AcceleratorState : PartialState {
  LaunchConfig config;  ///< as it was given to `launch`; in exact mode with what that implies

  /// Parts of a global batch: in exact mode its logical shards, otherwise one a rank.
  int logical_ranks() const { return config.exact ? config.exact->logical_ranks : world_size(); }
};

/// Examines the machine, and with LaunchConfig::nodes waits for the other nodes and compares their configurations with
/// this one; then the state is for one launch. Throws ConfigError saying what is wrong with `config` and what would be
/// right, and CollectiveError when nodes do not come, or fail.
AcceleratorState examine(const LaunchConfig& config);

/// Number of CPU ranks when none is asked for: one for each core that this process may use, or, where that is less, as
/// many as its control group's share of the processors, rounded up; at most 8.
int default_cpu_ranks();

}  // namespace tandem
