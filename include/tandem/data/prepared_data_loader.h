#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <type_traits>
#include <utility>

#include "tandem/data/detail/any_batch.h"
#include "tandem/data/loader_state.h"

namespace tandem::data {

class LoaderBase;

namespace detail {

/// A loop over one epoch of a prepared loader, whatever its batches are.
class LoaderLoop {
 public:
  /// Begins an epoch of `loader` and takes its first batch.
  explicit LoaderLoop(std::shared_ptr<LoaderBase> loader);
  LoaderLoop(LoaderLoop&& other) noexcept;
  LoaderLoop& operator=(LoaderLoop&&) = delete;
  ~LoaderLoop();

  AnyBatch& batch() { return batch_; }              ///< the batch taken last; empty at the end of the epoch
  const AnyBatch& batch() const { return batch_; }  ///< the batch taken last; empty at the end of the epoch

  /// Takes the next batch: see PreparedDataLoader::Iterator.
  void advance();

 private:
  bool is_in_epoch() const;
  void fetch();

  std::shared_ptr<LoaderBase> loader_;
  std::uint64_t epoch_ = 0;  // of those that the loader has begun
  AnyBatch batch_;
};

}  // namespace detail

/// The part of a prepared loader that does not depend on the type of its batches: where it stands, how long it is.
class PreparedDataLoaderBase {
 public:
  /// Steps of an epoch for this rank, as Accelerate counts them. Throws DataError for an iterable dataset.
  std::int64_t len() const;
  /// Steps that other ranks have after this rank's last, in the epoch that was begun last; 1 at most, and only without
  /// even_batches. Throws DataError for an iterable dataset.
  std::int64_t steps_without_batch() const;
  /// Real samples in the last step of all ranks; see EpochPlan::remainder. For an iterable -1 until the last step.
  std::int64_t remainder() const;
  /// True from just before the last step of an epoch is handed out until the next epoch begins.
  bool end_of_dataloader() const;
  /// Samples of a full step of all ranks; 0 with a batch sampler.
  std::int64_t total_batch_size() const;
  /// Samples of an epoch. Throws DataError for an iterable dataset.
  std::int64_t total_dataset_length() const;
  /// Number of the epoch that begins next, or is running; from 0.
  std::int64_t epoch() const;
  /// Sets it, also for the dataset where that has a set_epoch. All ranks must agree.
  void set_epoch(std::int64_t epoch);

  /// Where this loader stands, in the middle of an epoch or between two. Not collective.
  LoaderState state_dict() const;
  /// Makes the next epoch to begin the rest of the one in which `state` was taken: nothing is read twice (map-style
  /// data). Every rank calls it with the same state, rank 0's; a loop over the loader that is going on ends. Throws
  /// ConfigError when the global batch size is another one.
  void load_state_dict(const LoaderState& state);

 protected:
  /// Shares `loader`, which is not null.
  explicit PreparedDataLoaderBase(std::shared_ptr<LoaderBase> loader);

  /// See PreparedDataLoader::skip_first_batches.
  std::shared_ptr<LoaderBase> without_first(std::int64_t steps) const;

  std::shared_ptr<LoaderBase> loader_;  ///< shared by copies

 private:
  friend LoaderBase& loader_of(const PreparedDataLoaderBase& loader);
};

/// What `prepare` returns for a DataLoader: one rank's part of every epoch, as a range of batches. Copies share where
/// it stands. Belongs to its rank's thread.
///
///     for (auto& [images, labels] : loader) …
template <class Batch>
class PreparedDataLoader : public PreparedDataLoaderBase {
 public:
  /// Of a loader that makes batches of this type.
  explicit PreparedDataLoader(std::shared_ptr<LoaderBase> loader) : PreparedDataLoaderBase(std::move(loader)) {}

  /// Input iterator over one epoch; leaving it before the end ends the epoch early. So does beginning another epoch of
  /// the loader: the iterator keeps the batch that it has, and throws DataError when it is to take one more.
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;  ///< a batch is there once
    using value_type = Batch;                           ///< what the loader gives
    using difference_type = std::ptrdiff_t;             ///< which iterators must name

    /// Begins an epoch of `loader` and takes its first batch.
    explicit Iterator(std::shared_ptr<LoaderBase> loader) : loop_(std::move(loader)) {}

    /// The batch; it may be moved from.
    Batch& operator*() { return loop_.batch().template as<Batch>(); }

    /// A member of the batch.
    Batch* operator->() { return &**this; }

    /// Takes the next batch, waiting for it where it is not ready; at the end of the epoch does nothing. Throws what
    /// reading it threw, having left the epoch, and DataError when another epoch of the loader was begun meanwhile.
    Iterator& operator++() {
      loop_.advance();
      return *this;
    }

    /// Takes the next batch, as the prefix operator does.
    void operator++(int) { loop_.advance(); }

    /// Whether the epoch has no more batches.
    bool operator==(std::default_sentinel_t) const { return !loop_.batch(); }

   private:
    detail::LoaderLoop loop_;
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

  /// A loader without the first `steps` steps of each epoch; the rest stays as it is. Throws ConfigError when `steps`
  /// is negative.
  PreparedDataLoader skip_first_batches(std::int64_t steps) const { return PreparedDataLoader(without_first(steps)); }
};

}  // namespace tandem::data
