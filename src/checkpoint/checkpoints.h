// The state of a training, saved and loaded: what Accelerator::save_state and load_state do. A checkpoint is a
// directory of these files, of which there are as many as was prepared and registered, numbered from the second on:
//
//   optimizer.bin, scheduler.bin, scaler.pt, custom_checkpoint_0.pkl    as torch.save writes them
//   model.safetensors, or shards and model.safetensors.index.json       weights
//   sampler.bin                                                         a sampler's state, where it is large
//   tandem_state.json                                                   what is in none of these: state_file.h
//   manifest.json                                                       sizes and checksums: io/checkpoint_directory.h
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/state_file.h"
#include "checkpoint/state_saver.h"
#include "checkpoint/training_parts.h"
#include "comm/rank_group.h"
#include "nn/accumulation_window.h"
#include "optim/state_dict.h"
#include "rng/shard_generators.h"
#include "tandem/checkpoint/checkpoint_options.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/warning_sink.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/rng/generators.h"

namespace tandem {

/// A rank whose training is saved and loaded, and how. What it refers to outlives the checkpoints.
struct CheckpointedRank {
  comm::RankGroup& group;                   ///< of the launch
  int rank;                                 ///< in it
  const std::vector<c10::Device>& devices;  ///< of this process's ranks
  std::uint64_t seed;                       ///< the master seed
  int scheduler_steps_per_update;           ///< of the launch
  const CheckpointOptions& options;         ///< of the launch
  const WarningSink& on_warning;            ///< of the launch
  rng::RankGenerators& generators;          ///< the rank's defaults
  nn::AccumulationWindow& window;           ///< of its training
  rng::ShardGenerators* shards = nullptr;   ///< in exact mode: of the logical shards that it computes
  std::int64_t threads_per_rank = 1;        ///< of the launch
};

/// One rank's.
class Checkpoints {
 public:
  /// `parts`, which outlives it, is what the rank trains.
  Checkpoints(CheckpointedRank rank, TrainingParts& parts) : rank_(rank), parts_(parts) {}

  /// What the program adds to a state.
  struct Registered {
    std::vector<StateObject> objects;
    std::vector<StateHooks> hooks;
  };
  Registered& registered() { return registered_; }

  /// As Accelerator::save_state. `written`, of rank 0, hears how a save in the background has ended, on the thread that
  /// writes; empty: the next call throws what went wrong. Collective.
  std::string save(const std::string& directory, const SaveStateOptions& options, SaveWritten written = {});

  /// What was loaded.
  struct Loaded {
    std::string directory;
    std::optional<std::int64_t> updates;  ///< of the first optimizer; nothing: not known
  };

  /// As Accelerator::load_state. Collective.
  Loaded load(const std::string& directory, const LoadStateOptions& options);

  /// Returns when what this rank writes in the background is written. Throws CheckpointError.
  void finish_saving();

 private:
  struct LoadedState;
  struct Steps {
    std::vector<std::function<void()>> apply;
    std::vector<std::function<void()>> undo;    // of the first, which alone find out whether they fit: schedulers'
    std::vector<std::function<void()>> settle;  // when the optimizers have their options: schedules that have changed
  };

  bool is_main() const { return rank_.rank == 0; }
  int first_rank() const { return rank_.group.place().first_rank; }  // of this process
  c10::Device device() const { return rank_.devices[static_cast<std::size_t>(rank_.rank - first_rank())]; }
  template <class T>
  T of_main(const T& object) const {  // rank 0's
    return comm::detail::object_of_main(rank_.group, rank_.rank, "broadcast_object", object);
  }
  template <class T>
  T of_first_here(const T& object) const {  // that of this process's first rank
    const comm::RankGroup::Call call(rank_.group, rank_.rank, {.operation = "broadcast_object"}, &object);
    return call.payload<T>(first_rank());
  }
  void check_on_all(const std::function<void()>& check) const;
  void on_main_for_all(const std::function<void()>& work) const;
  optim::ParameterNames parameter_names() const;

  // ---- save_state.cpp
  StateSaver& saver();
  std::shared_ptr<io::CheckpointSeries> series();
  std::vector<GeneratorStates> generator_states();
  StateFile describe_state(const std::vector<GeneratorStates>& generators) const;
  optim::GroupValues group_values(const torch::optim::Optimizer& optimizer) const;
  optim::SaveOptions save_options(const optim::AcceleratedOptimizer& optimizer, const optim::ParameterNames& names);
  std::vector<io::NewFile> state_files(const std::string& directory, StateFile state, std::uint64_t max_shard_bytes,
                                       const std::function<at::Tensor(const at::Tensor&)>& keep);

  // ---- load_state.cpp
  std::shared_ptr<LoadedState> read_state(const std::string& directory) const;
  std::shared_ptr<LoadedState> read_latest() const;
  std::shared_ptr<LoadedState> on_all_ranks(std::shared_ptr<LoadedState> loaded) const;
  void check_counts(const LoadedState& loaded) const;
  Steps prepare_state(const LoadedState& loaded, const LoadStateOptions& options);
  void prepare_scheduler(Steps& steps, optim::AcceleratedScheduler scheduler, const LoadedState& loaded,
                         std::size_t index, const LoadStateOptions& options) const;
  void prepare_own_scheduler(Steps& steps, optim::AcceleratedScheduler scheduler, const c10::IValue& file,
                             const LoadStateOptions& options) const;
  std::size_t schedulers_of(const torch::optim::Optimizer& optimizer) const;
  std::int64_t updates_in(const c10::IValue& scheduler) const;
  void load_optimizers(const LoadedState& loaded, const LoadStateOptions& options);
  void load_generators(const StateFile& state);
  void load_shard_generators(const StateFile& state);
  void check_exact(const LoadedState& loaded) const;

  CheckpointedRank rank_;
  TrainingParts& parts_;
  Registered registered_;
  std::set<std::string> warnings_;                // that were given, of rank 0
  std::shared_ptr<io::CheckpointSeries> series_;  // of rank 0, from its first save on
  std::shared_ptr<StateSaver> saver_;             // of rank 0
};

}  // namespace tandem
