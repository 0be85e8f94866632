#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <c10/core/Device.h>

#include "tandem/comm/rank_group.h"
#include "tandem/data/active_loaders.h"
#include "tandem/data/batch.h"
#include "tandem/data/device_copies.h"
#include "tandem/data/step_source.h"
#include "tandem/trace/range.h"

namespace tandem::data {

/// The batch that a loader gives next.
struct EpochPosition {
  std::uint64_t loader;    ///< its number in the process; the same for those that skip some of its steps
  const StepInfo* status;  ///< as ActiveLoaders has it
  std::int64_t epoch;      ///< from 0
  std::int64_t step;       ///< batches of the epoch before it
  std::int64_t steps;      ///< of the epoch; -1: not known
};

/// Where a prepared loader runs.
struct LoaderContext {
  int rank = 0;                         ///< which of the launch
  comm::RankGroup* group = nullptr;     ///< outlives the loader
  ActiveLoaders* active = nullptr;      ///< of the rank; outlives the loader
  std::optional<c10::Device> device;    ///< where batches go; empty: they stay where the dataset made them
  bool non_blocking = true;             ///< to a GPU: on a stream of their own, one batch ahead
  bool pin_memory = true;               ///< to a GPU: through pinned memory
  std::function<void()> on_epoch = {};  ///< called by each rank when it begins an epoch (to synchronise generators)
  /// Called by each rank before it takes a batch; false: the epoch ends there, early.
  std::function<bool(const EpochPosition&)> before_batch = {};
  std::string name = "a data loader";  ///< what errors call it
};

/// Where a loader stands: enough to go on with the very next batch, also on another number of ranks with the same
/// global batch.
struct LoaderState {
  std::int64_t epoch = 0;              ///< that is running, or begins next
  std::int64_t step = 0;               ///< steps of it that were handed out
  std::int64_t global_batch_size = 0;  ///< 0: batches of different sizes
  /// The sampler's state before it drew the epoch that is running, or was drawn last (of Tandem's own samplers: before
  /// the next one, where none is running); undefined: it has none.
  at::Tensor generator = {};
  std::optional<SamplerState> sampler = {};  ///< of one that is not Tandem's own
};

/// A number for a new loader: another one in the process each time. Any thread.
std::uint64_t next_loader_number() noexcept;

/// Rank 0's `value` on every rank. Collective.
template <class T>
T share_from_main(const LoaderContext& context, const T& value) {
  const auto record = comm::describe_object_call("prepare", typeid(T));
  const comm::RankGroup::Call call(*context.group, context.rank, record, &value);
  return call.template payload<T>(0);
}

/// Throws ConfigError when `state` is not one of a loader with this global batch size.
void check_loader_state(const LoaderState& state, std::int64_t global_batch_size);

/// Throws the DataError of a loop over `loader` that goes on after another one over it has begun.
[[noreturn]] void throw_overtaken(const std::string& loader);

/// What of a prepared loader does not depend on its batches: where it stands. See LoaderBase.
class LoaderPosition {
 public:
  virtual ~LoaderPosition() = default;

  /// See LoaderBase.
  virtual LoaderState state() const = 0;

  /// See LoaderBase.
  virtual void load_state(const LoaderState& state) = 0;

  /// Samples of a full step of all ranks; 0 with a batch sampler.
  virtual std::int64_t global_batch_size() const = 0;
};

/// A loader that `Accelerator::prepare` made: one rank's part of every epoch, as a range of batches.
///
///     for (auto& [images, labels] : loader) …
///
/// An epoch begins with `start` and ends when the range is exhausted, or early with `leave`; only in the first case the
/// epoch counter advances. One epoch at a time, also of the loaders that skip some of its steps: another `start` ends
/// the one that is running. Belongs to its rank's thread.
template <class Batch>
class LoaderBase : public LoaderPosition {
 public:
  ~LoaderBase() override = default;  // an implementation leaves a running epoch in its own
  LoaderBase(const LoaderBase&) = delete;
  LoaderBase& operator=(const LoaderBase&) = delete;

  /// Begins an epoch.
  void start() {
    const trace::Range range(trace::Event::data_wait);
    context_.group->token().check();
    if (context_.on_epoch) context_.on_epoch();
    if (counter_->running) counter_->running->leave();
    counter_->begun += 1;
    first_step_ = std::max(std::exchange(counter_->resume_at, std::nullopt).value_or(0), skip_);
    stopped_ = false;
    handed_out_ = first_step_;
    number_ = counter_->begun;
    begin_epoch({.number = number_, .epoch = counter_->epoch, .first_step = handed_out_});
    position_ = planner_ && reads() ? planner_->position(number_) : SamplerPosition();
    // An iterable's workers may be reading already: it is told with the last step.
    status_ = StepInfo{.step = -1, .remainder = planner_ ? known_remainder() : -1};
    running_ = true;
    counter_->running = this;
    context_.active->enter(&status_);
  }

  /// The next batch of the epoch; nothing at its end, and when none is running.
  std::optional<Batch> next() {
    const trace::Range range(trace::Event::data_wait);
    context_.group->token().check();
    if (!running_) return std::nullopt;
    if (context_.before_batch &&
        !context_.before_batch({counter_->number, &status_, counter_->epoch, handed_out_, steps()})) {
      const LoaderState here = state();  // to go on from
      leave();
      load_state(here);
      stopped_ = true;
      return std::nullopt;
    }
    auto step = copies_ ? copies_->next([this] { return take(); }, [this] { return ready(); }) : take();
    if (!step) {
      if (!status_.last) used_up();  // nobody took a last sample, but the epoch is all the same used up
      if (status_.step < 0) status_.remainder = known_remainder();
      counter_->epoch += 1;
      leave();
      return std::nullopt;
    }
    status_ = step->first;
    handed_out_ += 1;
    if (status_.last) used_up();
    return place(std::move(step->second));
  }

  /// The epoch that was begun last, by this loader or one that skips some of its steps.
  std::uint64_t last_begun() const { return counter_->begun; }

  /// Ends an epoch early, or does nothing after its end.
  void leave() {
    if (!std::exchange(running_, false)) return;
    counter_->running = nullptr;
    context_.active->leave(&status_);
    if (copies_) copies_->drop();
    end_epoch();
  }

  /// A loader over the same epochs without their first `steps` steps (of every rank). Finishing one of its epochs
  /// advances this loader's epoch counter. Throws ConfigError when `steps` is negative.
  virtual std::unique_ptr<LoaderBase> skip_first_batches(std::int64_t steps) = 0;

  /// Where the loader stands, or the one that skips some of its steps and is running. The same on all ranks that have
  /// taken as many steps, but that in dispatch mode only rank 0's holds the sampler's generator: keep that one.
  LoaderState state() const override {
    if (counter_->running && counter_->running != this) return counter_->running->state();
    const SamplerPosition here = running_              ? position_
                                 : planner_ && reads() ? planner_->position_before(counter_->begun + 1)
                                                       : SamplerPosition();
    return {counter_->epoch, running_ ? handed_out_ : counter_->resume_at.value_or(0), global_batch_size(), here.state,
            here.sampler};
  }

  /// Makes the next epoch to begin the rest of the one in which `state` was taken. All ranks do so. An epoch that is
  /// running ends: a loop over it gets no more batches. Throws ConfigError when `state` comes from a loader with
  /// another global batch size. A sampler of the program's own comes to its place when that epoch begins, which throws
  /// DataError where it gives another order than it had given.
  void load_state(const LoaderState& state) override {
    check_loader_state(state, global_batch_size());
    if (counter_->running) counter_->running->leave();
    counter_->epoch = state.epoch;
    counter_->resume_at = state.step;
    counter_->loads += 1;
    if (planner_ && reads())
      planner_->restore(counter_->begun + 1, counter_->loads, {state.generator, state.sampler}, state.epoch);
  }

  /// See EpochPlan::len, less what is skipped. Throws DataError for an iterable, which has no length.
  std::int64_t len() const { return std::max<std::int64_t>(planner().len(context_.rank) - skip_, 0); }

  /// Samples of a full step of all ranks; 0 with a batch sampler, whose batches may differ.
  std::int64_t global_batch_size() const override {
    return planner_ ? planner_->global_batch_size() : stream_global_batch_;
  }

  /// Number of the epoch that begins next, or is running; from 0.
  std::int64_t epoch() const { return counter_->epoch; }

  /// Sets it, between epochs. All ranks must agree.
  void set_epoch(std::int64_t epoch) { counter_->epoch = epoch; }

  /// EpochPlan::remainder; -1 too while it is not known (iterables and batch samplers, before the epoch's end or
  /// start).
  std::int64_t remainder() const {
    return planner_ && planner_->global_batch_size() > 0 ? EpochPlan(planner_->options()).remainder()
                                                         : status_.remainder;
  }

  /// Steps that other ranks have after this rank's last, in the epoch that was begun last; 0 where a session has
  /// stopped it, for all ranks.
  std::int64_t steps_without_batch() const {
    if (stopped_) return 0;
    const std::int64_t mine = std::max(planner().steps(context_.rank), first_step_);
    return std::max<std::int64_t>(planner().steps(0) - mine, 0);
  }

  /// The step that was handed out last.
  const StepInfo& status() const { return status_; }
  const LoaderContext& context() const { return context_; }  ///< where it runs

  /// Throws DataError for an iterable.
  const StepPlanner& planner() const {
    if (!planner_) throw DataError("an iterable dataset does not know its length");
    return *planner_;
  }

 protected:
  /// Shared by a loader and those that skip some of its steps.
  struct Counter {
    const std::uint64_t number = next_loader_number();  ///< of the loader in the process
    std::int64_t epoch = 0;                             ///< that is running, or begins next
    std::uint64_t begun = 0;                            ///< epochs so far
    std::uint64_t loads = 0;                            ///< calls of load_state so far
    LoaderBase* running = nullptr;                      ///< which of them is
    std::optional<std::int64_t> resume_at{};            ///< the step that the next epoch begins with
  };

  /// `planner` is null for an iterable, whose global batch size is given instead.
  LoaderBase(LoaderContext context, std::shared_ptr<StepPlanner> planner, std::int64_t stream_global_batch)
      : context_(std::move(context)),
        planner_(std::move(planner)),
        stream_global_batch_(stream_global_batch),
        counter_(std::make_shared<Counter>()) {
    if (on_gpu() && context_.non_blocking) copies_.emplace(*context_.device, context_.pin_memory);
  }

  /// Shares the epochs of this loader with one that skips `steps` more.
  void share_epochs_with(LoaderBase& skipping, std::int64_t steps) const {
    if (steps < 0) throw ConfigError("skip_first_batches(" + std::to_string(steps) + "): use 0 or more");
    skipping.counter_ = counter_;
    skipping.skip_ = skip_ + steps;
  }

  /// Gets the steps of an epoch going. The rank leaves the one before first.
  virtual void begin_epoch(const EpochStart& start) = 0;

  /// Ends it, also before its last step.
  virtual void end_epoch() = 0;

  /// This rank's next step; nothing at the end of the epoch.
  virtual std::optional<std::pair<StepInfo, Batch>> take() = 0;

  /// Whether `take` would wait neither for another rank nor for a worker.
  virtual bool ready() = 0;

  /// EpochPlan::remainder of the running epoch; -1 while this rank does not know it.
  virtual std::int64_t known_remainder() const = 0;

  /// True when this rank reads the dataset, and so takes part in drawing orders.
  virtual bool reads() const = 0;

  /// The running epoch's number among those that the rank has begun, from 1.
  std::uint64_t epoch_number() const { return number_; }

 private:
  void used_up() {
    if (planner_ && reads()) planner_->exhausted(number_);
  }

  // Of an epoch; -1: not known.
  std::int64_t steps() const { return planner_ ? planner_->len(context_.rank) : -1; }

  bool on_gpu() const { return context_.device && !context_.device->is_cpu(); }

  Batch place(Batch batch) const {
    if (!context_.device || copies_) return batch;
    return data::to_device(std::move(batch), *context_.device);
  }

  LoaderContext context_;
  std::shared_ptr<StepPlanner> planner_;
  std::int64_t stream_global_batch_;
  std::shared_ptr<Counter> counter_;
  std::optional<DeviceCopies<Batch>> copies_;
  std::int64_t skip_ = 0;
  // Of the epoch that runs, or ran last.
  bool running_ = false, stopped_ = false;  // by `before_batch`
  std::uint64_t number_ = 0;
  std::int64_t first_step_ = 0, handed_out_ = 0;
  SamplerPosition position_;
  StepInfo status_;
};

/// What `prepare` returns for a DataLoader: shared ownership of a DataLoaderShard or a DataLoaderDispatcher.
template <class Batch>
class PreparedDataLoader {
 public:
  /// Shares `loader`, which is not null.
  explicit PreparedDataLoader(std::shared_ptr<LoaderBase<Batch>> loader) : loader_(std::move(loader)) {}

  /// Input iterator over one epoch; leaving it before the end ends the epoch early. So does beginning another epoch of
  /// the loader: the iterator keeps the batch that it has, and throws DataError when it is to take one more.
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;  ///< a batch is there once
    using value_type = Batch;                           ///< what the loader gives
    using difference_type = std::ptrdiff_t;             ///< which iterators must name

    /// Begins an epoch of `loader` and takes its first batch.
    explicit Iterator(std::shared_ptr<LoaderBase<Batch>> loader) : loader_(std::move(loader)) {
      loader_->start();
      epoch_ = loader_->last_begun();
      fetch();
    }

    /// Takes over the epoch that `other` is in.
    Iterator(Iterator&& other) noexcept
        : loader_(std::exchange(other.loader_, nullptr)), epoch_(other.epoch_), batch_(std::move(other.batch_)) {}
    Iterator& operator=(Iterator&&) = delete;
    ~Iterator() {
      if (loader_ && is_in_epoch()) loader_->leave();
    }

    /// The batch; it may be moved from.
    Batch& operator*() { return *batch_; }

    /// The same.
    Batch* operator->() { return &*batch_; }

    /// Takes the next batch, waiting for it where it is not ready; at the end of the epoch does nothing. Throws what
    /// reading it threw, having left the epoch, and DataError when another epoch of the loader was begun meanwhile.
    Iterator& operator++() {
      advance();
      return *this;
    }

    /// Takes the next batch, as the prefix operator does.
    void operator++(int) { advance(); }

    /// Whether the epoch has no more batches.
    bool operator==(std::default_sentinel_t) const { return !batch_.has_value(); }

   private:
    // Not so once another epoch has begun, which is another iterator's.
    bool is_in_epoch() const { return loader_->last_begun() == epoch_; }

    void advance() {
      if (!batch_) return;
      if (!is_in_epoch()) throw_overtaken(loader_->context().name);
      fetch();
    }

    void fetch() {
      batch_.reset();  // gives the last batch's memory back before the next one is made
      try {
        batch_ = loader_->next();
      } catch (...) {
        loader_->leave();
        throw;
      }
    }

    std::shared_ptr<LoaderBase<Batch>> loader_;
    std::uint64_t epoch_ = 0;  // of those that the loader has begun
    std::optional<Batch> batch_;
  };

  /// Begins an epoch and reads its first batch. One loop at a time: a loop that was going on over this loader, or one
  /// that skips some of its steps, cannot go on.
  Iterator begin() const { return Iterator(loader_); }

  /// What iterators are compared with.
  std::default_sentinel_t end() const { return {}; }

  /// `*loader` does not compile, which a loop over LibTorch's loader needs.
  template <class Same = Batch>
  const PreparedDataLoader& operator*() const {
    static_assert(!std::is_same_v<Same, Batch>,
                  "a prepared loader is no pointer to one: write `for (auto& batch : loader)`, without the `*`");
    return *this;
  }

  /// `loader->…` does not compile, as LibTorch's loader would have it.
  template <class Same = Batch>
  const PreparedDataLoader* operator->() const {
    static_assert(!std::is_same_v<Same, Batch>,
                  "a prepared loader is no pointer to one: write `loader.len()`, with a dot");
    return this;
  }

  /// Steps of an epoch for this rank, as Accelerate counts them. Throws DataError for an iterable dataset.
  std::int64_t len() const { return loader_->len(); }
  /// Steps that other ranks have after this rank's last, in the epoch that was begun last; 1 at most, and only without
  /// even_batches. Throws DataError for an iterable dataset.
  std::int64_t steps_without_batch() const { return loader_->steps_without_batch(); }
  /// Real samples in the last step of all ranks; see EpochPlan::remainder. For an iterable -1 until the last step.
  std::int64_t remainder() const { return loader_->remainder(); }
  /// True from just before the last step of an epoch is handed out until the next epoch begins.
  bool end_of_dataloader() const { return loader_->status().last; }
  /// Samples of a full step of all ranks; 0 with a batch sampler.
  std::int64_t total_batch_size() const { return loader_->global_batch_size(); }
  /// Samples of an epoch. Throws DataError for an iterable dataset.
  std::int64_t total_dataset_length() const { return loader_->planner().options().length; }
  /// Number of the epoch that begins next, or is running; from 0.
  std::int64_t epoch() const { return loader_->epoch(); }
  /// Sets it, also for the dataset where that has a set_epoch. All ranks must agree.
  void set_epoch(std::int64_t epoch) { loader_->set_epoch(epoch); }

  /// A loader without the first `steps` steps of each epoch; the rest stays as it is.
  PreparedDataLoader skip_first_batches(std::int64_t steps) const {
    return PreparedDataLoader(loader_->skip_first_batches(steps));
  }

  /// Where this loader stands, in the middle of an epoch or between two. Not collective.
  LoaderState state_dict() const { return loader_->state(); }
  /// Makes the next epoch to begin the rest of the one in which `state` was taken: nothing is read twice (map-style
  /// data). Every rank calls it with the same state, rank 0's; a loop over the loader that is going on ends. Throws
  /// ConfigError when the global batch size is another one.
  void load_state_dict(const LoaderState& state) { loader_->load_state(state); }

  /// The DataLoaderShard or DataLoaderDispatcher behind it.
  LoaderBase<Batch>& loader() const { return *loader_; }

  /// The same for those who do not know what its batches are.
  std::weak_ptr<LoaderPosition> position() const { return loader_; }

 private:
  std::shared_ptr<LoaderBase<Batch>> loader_;
};

}  // namespace tandem::data
