// The state of a training, saved and loaded: what Accelerator::save_state and load_state do.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "runtime/state_file.h"
#include "runtime/state_saver.h"
#include "runtime/training_parts.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/optim/state_dict.h"
#include "tandem/runtime/checkpoint_options.h"
#include "tandem/runtime/rank_handle.h"

namespace tandem {

/// One rank's.
class Checkpoints {
 public:
  /// All outlive it. `context` is that of `ranks`.
  Checkpoints(RankHandle& ranks, RankContext& context, Prepared& prepared)
      : ranks_(ranks), context_(context), prepared_(prepared) {}

  /// What the program adds to a state.
  struct Registered {
    std::vector<StateObject> objects;
    std::vector<StateHooks> hooks;
  };
  Registered& registered() { return registered_; }

  /// As Accelerator::save_state. `written`, of rank 0, hears how a save in the background has ended, on the thread that
  /// writes; empty: the next call throws what went wrong. Collective.
  std::string save(const std::string& directory, const SaveStateOptions& options, SaveWritten written = {});

  /// As Accelerator::load_state. Collective.
  std::string load(const std::string& directory, const LoadStateOptions& options);

  /// Returns when what this rank writes in the background is written. Throws CheckpointError.
  void finish_saving();

 private:
  struct LoadedState;
  struct Steps {
    std::vector<std::function<void()>> apply;
    std::vector<std::function<void()>> undo;    // of the first, which alone find out whether they fit: schedulers'
    std::vector<std::function<void()>> settle;  // when the optimizers have their options: schedules that have changed
  };

  const LaunchConfig& config() const { return context_.state->config; }
  optim::ParameterNames parameter_names() const;

  // ---- save_state.cpp
  StateSaver& saver();
  std::shared_ptr<io::CheckpointSeries> series();
  GeneratorStates generator_states();
  StateFile describe_state(const std::vector<GeneratorStates>& generators) const;
  optim::GroupValues group_values(const torch::optim::Optimizer& optimizer) const;
  optim::SaveOptions save_options(const optim::AcceleratedOptimizer& optimizer, const optim::ParameterNames& names);
  std::vector<io::NewFile> state_files(const std::string& directory, StateFile state, std::uint64_t max_shard_bytes,
                                       const std::function<at::Tensor(const at::Tensor&)>& keep);

  // ---- load_state.cpp
  std::shared_ptr<LoadedState> read_state(const std::string& directory) const;
  std::shared_ptr<LoadedState> read_latest() const;
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

  RankHandle& ranks_;
  RankContext& context_;
  Prepared& prepared_;
  Registered registered_;
  std::set<std::string> warnings_;                // that were given, of rank 0
  std::shared_ptr<io::CheckpointSeries> series_;  // of rank 0, from its first save on
  std::shared_ptr<StateSaver> saver_;             // of rank 0
};

}  // namespace tandem
