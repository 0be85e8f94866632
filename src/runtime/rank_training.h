// What one rank trains, and how: all that an Accelerator is a handle to.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoints.h"
#include "checkpoint/training_parts.h"
#include "runtime/backward_passes.h"
#include "runtime/clipping.h"
#include "runtime/divided_updates.h"
#include "runtime/exact_training.h"
#include "runtime/rank_context.h"
#include "runtime/step_recorder.h"
#include "runtime/training_warnings.h"
#include "runtime/uneven_inputs.h"
#include "runtime/window_means.h"
#include "tandem/data/data_loader.h"
#include "tandem/io/model_files.h"

namespace tandem {

class RankProfiler;

/// The parts of one rank's training, each of which owns its state, and what takes several of them. Belongs to the
/// rank's thread.
class RankTraining {
 public:
  /// `rank` outlives it.
  explicit RankTraining(RankContext& rank);
  RankTraining(const RankTraining&) = delete;
  RankTraining& operator=(const RankTraining&) = delete;

  RankContext& context;
  TrainingParts parts;
  Checkpoints checkpoints;
  DividedUpdates updates;
  Join join;
  TrainingWarnings warnings;
  StepRecorder recorder;
  BackwardPasses passes;
  Clipping clipping;
  WindowMeans means;
  std::optional<ExactTraining> exact;  ///< in exact mode
  RankProfiler* profiler = nullptr;    ///< within Accelerator::profile

  // ---- preparing

  /// The reducer of `module`, which is made when it is prepared for the first time. Collective.
  std::shared_ptr<nn::ModelReducer> prepare_module(const std::shared_ptr<torch::nn::Module>& module);

  /// Collective.
  optim::AcceleratedOptimizer prepare_optimizer(torch::optim::Optimizer& optimizer, optim::OptimizerClass its_class);

  /// Collective.
  optim::AcceleratedScheduler prepare_scheduler(optim::detail::SchedulerCalls calls);

  /// Collective.
  std::shared_ptr<data::LoaderBase> prepare_loader(const data::DataLoaderOptions& options,
                                                   const data::detail::AnyDataset& dataset);

  /// Gives all ranks rank 0's state of these generators. Collective.
  void synchronize_generators(const std::vector<data::RngType>& types) const;

  // ---- training

  void begin_micro_batch(bool close);
  void end_micro_batch() noexcept;

  /// Whether the last step of `optimizer`, or of any for null, was skipped.
  bool step_was_skipped(const torch::optim::Optimizer* optimizer) const;

  /// How much was prepared and registered, by its kinds.
  struct PartCounts {
    std::size_t models = 0, optimizers = 0, schedulers = 0, loaders = 0, objects = 0, hooks = 0;
  };
  PartCounts part_counts();

  /// Forgets what came after the first of each kind.
  void forget_parts(const PartCounts& kept);

  /// What sets this rank back to where it is now, with what it has prepared by now.
  std::function<void()> undo_point();

  // ---- files

  void save_model(const torch::nn::Module* module, const std::string& directory,
                  const io::ModelFileOptions& options) const;
  void load_model(const std::shared_ptr<torch::nn::Module>& module, const std::string& directory);

  /// As Accelerator::save_state. `written`: see Checkpoints::save.
  std::string save_state(const std::string& directory, const SaveStateOptions& options, SaveWritten written = {});
  std::string load_state(const std::string& directory, const LoadStateOptions& options);

  // ---- for those who look

  /// The models, in the order in which they were prepared.
  std::vector<std::shared_ptr<torch::nn::Module>> modules() const;

  /// As Accelerator::memory_summary.
  std::string memory_summary() const;

  /// Throws Error when gradients were infinite or NaN, waiting for what is not known yet: see
  /// nn::GradientReducerOptions::check_finite.
  void throw_if_not_finite() const;

 private:
  void after_update(const torch::optim::Optimizer& optimizer);
  void agree_on_step(at::Tensor& found_inf);
  void step_with_closure(const optim::Closure& closure, const std::function<void(const optim::Closure&)>& step);
  std::function<void()> rng_synchronisation() const;
  void check_between_updates() const;
};

}  // namespace tandem
