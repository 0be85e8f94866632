// A batch's way to its rank: LoaderBase::next (before_batch, take, to the device) → DataLoaderShard or
// DataLoaderDispatcher::take → ReadAhead, with workers or without → MapSteps or StreamSteps, which read the dataset by
// the plan (EpochPlan) and, in dispatch mode, for all ranks at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "data/device_copies.h"
#include "data/loader_context.h"
#include "data/step_planner.h"
#include "data/step_source.h"
#include "tandem/data/detail/any_batch.h"
#include "tandem/data/loader_state.h"

namespace tandem::data {

/// Throws ConfigError when `state` is not one of a loader with this global batch size.
void check_loader_state(const LoaderState& state, std::int64_t global_batch_size);

/// Throws the DataError of a loop over `loader` that goes on after another one over it has begun.
[[noreturn]] void throw_overtaken(const std::string& loader);

class PreparedDataLoaderBase;
class LoaderBase;

/// What is behind a prepared loader, which programs do not see.
LoaderBase& loader_of(const PreparedDataLoaderBase& loader);

/// What a PreparedDataLoader is the face of: one rank's part of every epoch.
///
/// An epoch begins with `start` and ends when there is no next batch, or early with `leave`; only in the first case the
/// epoch counter advances. One epoch at a time, also of the loaders that skip some of its steps: another `start` ends
/// the one that is running. Belongs to its rank's thread.
class LoaderBase {
 public:
  virtual ~LoaderBase() = default;  // an implementation leaves a running epoch in its own
  LoaderBase(const LoaderBase&) = delete;
  LoaderBase& operator=(const LoaderBase&) = delete;

  /// Begins an epoch.
  void start();

  /// The next batch of the epoch; none at its end, and when none is running.
  detail::AnyBatch next();

  /// The epoch that was begun last, by this loader or one that skips some of its steps.
  std::uint64_t last_begun() const { return counter_->begun; }

  /// Ends an epoch early, or does nothing after its end.
  void leave();

  /// A loader over the same epochs without their first `steps` steps (of every rank). Finishing one of its epochs
  /// advances this loader's epoch counter. Throws ConfigError when `steps` is negative.
  virtual std::shared_ptr<LoaderBase> skip_first_batches(std::int64_t steps) = 0;

  /// Where the loader stands, or the one that skips some of its steps and is running. The same on all ranks that have
  /// taken as many steps, but that in dispatch mode only rank 0's holds the sampler's generator: keep that one.
  LoaderState state() const;

  /// Makes the next epoch to begin the rest of the one in which `state` was taken. All ranks do so. An epoch that is
  /// running ends: a loop over it gets no more batches. Throws ConfigError when `state` comes from a loader with
  /// another global batch size. A sampler of the program's own comes to its place when that epoch begins, which throws
  /// DataError where it gives another order than it had given.
  void load_state(const LoaderState& state);

  /// See EpochPlan::len, less what is skipped. Throws DataError for an iterable, which has no length.
  std::int64_t len() const;

  /// Samples of a full step of all ranks; 0 with a batch sampler, whose batches may differ.
  std::int64_t global_batch_size() const;

  /// Number of the epoch that begins next, or is running; from 0.
  std::int64_t epoch() const { return counter_->epoch; }

  /// Sets it, between epochs. All ranks must agree.
  void set_epoch(std::int64_t epoch) { counter_->epoch = epoch; }

  /// EpochPlan::remainder; -1 too while it is not known (iterables and batch samplers, before the epoch's end or
  /// start).
  std::int64_t remainder() const;

  /// Batches that this rank lacks where other ranks have one, at the end of the epoch that was begun last; 0 where a
  /// session has stopped it, for all ranks.
  std::int64_t steps_without_batch() const;

  const StepInfo& status() const { return status_; }         ///< the step that was handed out last
  const LoaderContext& context() const { return context_; }  ///< where it runs

  /// Throws DataError for an iterable.
  const StepPlanner& planner() const;

 protected:
  /// `planner` is null for an iterable, whose global batch size is given instead.
  LoaderBase(LoaderContext context, std::shared_ptr<StepPlanner> planner, std::int64_t stream_global_batch);

  /// Shares the epochs of this loader with one that skips `steps` more.
  void share_epochs_with(LoaderBase& skipping, std::int64_t steps) const;

  /// Gets the steps of an epoch going. The rank leaves the one before first.
  virtual void begin_epoch(const EpochStart& start) = 0;

  /// Ends it, also before its last step.
  virtual void end_epoch() = 0;

  /// This rank's next step; nothing at the end of the epoch.
  virtual std::optional<RankStep> take() = 0;

  /// Whether `take` would wait neither for another rank nor for a worker.
  virtual bool ready() = 0;

  /// EpochPlan::remainder of the running epoch; -1 while this rank does not know it.
  virtual std::int64_t known_remainder() const = 0;

  /// True when this rank reads the dataset, and so takes part in drawing orders.
  virtual bool reads() const = 0;

  /// The running epoch's number among those that the rank has begun, from 1.
  std::uint64_t epoch_number() const { return number_; }

 private:
  // Shared by a loader and those that skip some of its steps.
  struct Counter {
    std::uint64_t number;                     // of the loader in the process
    std::int64_t epoch = 0;                   // that is running, or begins next
    std::uint64_t begun = 0;                  // epochs so far
    std::uint64_t loads = 0;                  // calls of load_state so far
    LoaderBase* running = nullptr;            // which of them is
    std::optional<std::int64_t> resume_at{};  // the step that the next epoch begins with
  };

  bool may_take();
  std::optional<RankStep> take_on_device();
  void used_up();
  std::int64_t steps() const;

  LoaderContext context_;
  std::shared_ptr<StepPlanner> planner_;
  std::int64_t stream_global_batch_;
  std::shared_ptr<Counter> counter_;
  std::optional<DeviceCopies> copies_;
  std::int64_t skip_ = 0;
  // Of the epoch that runs, or ran last.
  bool running_ = false, stopped_ = false;  // by `before_batch`
  std::uint64_t number_ = 0;
  std::int64_t first_step_ = 0, handed_out_ = 0;
  SamplerPosition position_;
  StepInfo status_;
};

}  // namespace tandem::data
