#pragma once

#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <c10/core/Device.h>

#include "tandem/comm/rank_group.h"
#include "tandem/data/batch.h"
#include "tandem/data/epoch_cursor.h"

namespace tandem::data {

/// Reads the samples with the given dataset indices as one batch.
template <class Batch>
using ReadBatch = std::function<Batch(const std::vector<std::int64_t>&)>;

/// Where a prepared loader runs.
struct LoaderContext {
  int rank = 0;
  comm::RankGroup* group = nullptr;   ///< outlives the loader
  ActiveLoaders* active = nullptr;    ///< of the rank; outlives the loader
  std::optional<c10::Device> device;  ///< where batches go; empty: they stay where the dataset made them
  bool non_blocking = false;          ///< copy to the device without waiting
};

/// A loader that `Accelerator::prepare` made: one rank's part of every epoch, as a range of batches.
///
///     for (auto& [images, labels] : loader) …
///
/// An epoch begins with `begin()` and ends when the range is exhausted, or early when its iterator is destroyed; only
/// in the first case the epoch counter advances. One epoch at a time. Belongs to its rank's thread.
template <class Batch>
class LoaderBase {
 public:
  virtual ~LoaderBase() = default;
  LoaderBase(const LoaderBase&) = delete;
  LoaderBase& operator=(const LoaderBase&) = delete;

  /// Begins an epoch.
  void start() {
    context_.group->token().check();
    begin_count_ += 1;
    cursor_.start();
    context_.active->enter(&cursor_.status());
  }

  /// The next batch of the epoch; nothing at its end.
  std::optional<Batch> next() {
    context_.group->token().check();
    if (!cursor_.has_step()) {
      cursor_.finish();
      leave();
      return std::nullopt;
    }
    Batch batch = fetch();
    cursor_.advance();
    if (context_.device) return to_device(std::move(batch), *context_.device, context_.non_blocking);
    return batch;
  }

  /// Ends an epoch early, or does nothing after its end.
  void leave() { context_.active->leave(&cursor_.status()); }

  EpochCursor& cursor() { return cursor_; }
  const EpochCursor& cursor() const { return cursor_; }
  const LoaderContext& context() const { return context_; }

  /// A loader over the same epochs without their first `steps` steps (of every rank). Finishing one of its epochs
  /// advances this loader's epoch counter. Collective in dispatch mode.
  virtual std::unique_ptr<LoaderBase> skip_first_batches(std::int64_t steps) = 0;

 protected:
  LoaderBase(LoaderContext context, EpochCursor cursor) : context_(context), cursor_(std::move(cursor)) {}

  /// This rank's batch of the cursor's step.
  virtual Batch fetch() = 0;

  std::uint64_t begin_count() const { return begin_count_; }

 private:
  LoaderContext context_;
  EpochCursor cursor_;
  std::uint64_t begin_count_ = 0;  // epochs begun, finished or not
};

/// What `prepare` returns for a DataLoader: shared ownership of a DataLoaderShard or a DataLoaderDispatcher.
template <class Batch>
class PreparedDataLoader {
 public:
  explicit PreparedDataLoader(std::shared_ptr<LoaderBase<Batch>> loader) : loader_(std::move(loader)) {}

  /// Input iterator over one epoch; leaving it before the end ends the epoch early.
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Batch;
    using difference_type = std::ptrdiff_t;

    explicit Iterator(std::shared_ptr<LoaderBase<Batch>> loader) : loader_(std::move(loader)) {
      loader_->start();
      fetch();
    }
    Iterator(Iterator&& other) noexcept
        : loader_(std::exchange(other.loader_, nullptr)), batch_(std::move(other.batch_)) {}
    Iterator& operator=(Iterator&&) = delete;
    ~Iterator() {
      if (loader_) loader_->leave();
    }

    Batch& operator*() { return *batch_; }
    Batch* operator->() { return &*batch_; }
    Iterator& operator++() {
      fetch();
      return *this;
    }
    void operator++(int) { fetch(); }
    bool operator==(std::default_sentinel_t) const { return !batch_.has_value(); }

   private:
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
    std::optional<Batch> batch_;
  };

  /// Begins an epoch and reads its first batch.
  Iterator begin() const { return Iterator(loader_); }
  std::default_sentinel_t end() const { return {}; }

  /// Steps of an epoch for this rank, as Accelerate counts them.
  std::int64_t len() const { return loader_->cursor().len(); }
  /// Steps that other ranks have after this rank's last; 1 at most, and only without even_batches.
  std::int64_t steps_without_batch() const {
    const EpochCursor& cursor = loader_->cursor();
    return cursor.plan().steps(0) - cursor.plan().steps(cursor.rank());
  }
  /// Real samples in the last step of all ranks; see EpochPlan::remainder.
  std::int64_t remainder() const { return loader_->cursor().plan().remainder(); }
  /// True from just before the last step of an epoch is handed out until the next epoch begins.
  bool end_of_dataloader() const { return loader_->cursor().status().end_of_dataloader; }
  /// Samples of a full step of all ranks.
  std::int64_t total_batch_size() const { return loader_->cursor().plan().global_batch_size(); }
  /// Samples in the dataset.
  std::int64_t total_dataset_length() const { return loader_->cursor().plan().options().length; }
  /// Number of the epoch that begins next, or is running; from 0.
  std::int64_t epoch() const { return loader_->cursor().epoch(); }
  /// Sets it. All ranks must agree.
  void set_epoch(std::int64_t epoch) { loader_->cursor().set_epoch(epoch); }

  /// A loader without the first `steps` steps of each epoch; the rest stays as it is. Collective in dispatch mode.
  PreparedDataLoader skip_first_batches(std::int64_t steps) const {
    return PreparedDataLoader(loader_->skip_first_batches(steps));
  }

  /// The DataLoaderShard or DataLoaderDispatcher behind it.
  LoaderBase<Batch>& loader() const { return *loader_; }

 private:
  std::shared_ptr<LoaderBase<Batch>> loader_;
};

}  // namespace tandem::data
