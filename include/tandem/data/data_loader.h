#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "tandem/core/error.h"
#include "tandem/core/unwanted_work.h"
#include "tandem/data/batch.h"
#include "tandem/data/detail/any_dataset.h"
#include "tandem/data/detail/dataset_access.h"
#include "tandem/data/detail/fingerprint.h"
#include "tandem/data/sampler.h"

namespace tandem::data {

/// How a DataLoader makes batches of its dataset. The names are those of Python's DataLoader.
struct DataLoaderOptions {
  std::int64_t batch_size = 1;  ///< samples of a rank's batch (of all ranks' with split_batches)
  bool shuffle = false;         ///< another order each epoch
  /// Of the shuffling, and of what datasets draw; default: data_seed or the master seed, equal on all ranks.
  std::optional<std::uint64_t> seed = {};
  bool drop_last = false;  ///< leave out the samples that do not fill a batch of every rank
  /// Shuffle with a copy of this generator (rank 0's, as it is at prepare) instead of one seeded with `seed`. A loader
  /// should have its own: with the default generator, what the training draws would change the order of the samples,
  /// and augmentation that differs by rank would make the ranks' orders differ.
  std::optional<at::Generator> generator = {};
  std::shared_ptr<Sampler> sampler = {};             ///< order of the samples, instead of shuffle
  std::shared_ptr<BatchSampler> batch_sampler = {};  ///< instead of batch_size, shuffle, sampler and drop_last

  int workers = 0;   ///< threads that read ahead, for all ranks together; 0: each rank reads when it needs a batch
  int prefetch = 2;  ///< batches that each worker may be ahead
  /// Off: with workers, whichever batch is ready first; the last one stays the last. A state that was taken in the
  /// middle of such an epoch goes on after as many batches, which need not have been the first ones.
  bool in_order = true;
  std::optional<std::chrono::milliseconds> timeout = {};  ///< longest wait for a batch from the workers
  std::function<void(int)> worker_init = {};              ///< called by each worker thread with its number, from 0
  bool pin_memory = true;                                 ///< copy through pinned memory, where ranks are GPUs
  std::optional<bool> non_blocking = {};                  ///< see DataLoaderConfiguration, the default
};

/// A dataset and how to batch it. `Accelerator::prepare` makes of it the loader that a rank iterates over.
///
///     tandem::data::DataLoader train(mnist("data/mnist"), {.batch_size = 64, .shuffle = true});
///
/// Datasets: any of torch::data (map-style, stateful or stream, with their transforms), IterableDataset, and ours.
/// Samples are collated by default_collate unless the dataset gives batches, or `with_collate` says how.
///
/// What a dataset draws from the default generator while it reads a sample depends on the seed, the epoch and the
/// sample's index only (per call for datasets that read a batch at once, and for collations): augmentation is the same
/// with any number of workers and ranks. With workers, or on several ranks, a map-style dataset is read from several
/// threads at once: its `get` must allow that. An iterable is read by one thread at a time, for all ranks, which share
/// rank 0's. A dataset with a member `set_epoch(std::int64_t)` is told which epoch begins. One that may wait
/// for long in a read should look at tandem::work_is_unwanted() and give up when it turns true. On several machines
/// each reads its ranks' part of a map-style dataset; what tells itself apart from other data (HasFingerprint) is
/// compared in `prepare`.
template <class Dataset, class Batch_ = DefaultBatch<SampleOf<Dataset>>>
class DataLoader {
 public:
  using Sample = SampleOf<Dataset>;  ///< what the dataset gives
  using Batch = Batch_;              ///< what the collation makes of samples

  /// Samples come one after another, and cannot be asked for by index.
  static constexpr bool iterable = is_iterable<Dataset>();

  /// Copies `dataset`, or takes it over when it is moved here. Copies of the loader share it. `prepare` checks the
  /// options.
  explicit DataLoader(Dataset dataset,
                      DataLoaderOptions options = {}) requires std::is_same_v<Batch, DefaultBatch<Sample>>
      : DataLoader(std::make_shared<Dataset>(std::move(dataset)), std::move(options), default_collation(),
                   first_of_its_streams()) {
    stacks_ = !gives_batches<Dataset>;
  }

  /// A loader over this dataset and with these options, with `collate(std::vector<Sample>) -> NewBatch`. Not for
  /// datasets that give batches themselves.
  template <class Collate>
  auto with_collate(Collate collate) const {
    static_assert(!gives_batches<Dataset>, "the dataset gives batches itself; there is nothing to collate");
    using NewBatch = std::invoke_result_t<Collate&, std::vector<Sample>>;
    return DataLoader<Dataset, NewBatch>(dataset_, options_, std::move(collate), one_stream_);
  }

  /// A copy of this loader with `slice(batch, begin, end)` in place of data::slice, which divides a batch of all ranks
  /// between them (dispatch mode with split_batches).
  DataLoader with_slice(std::function<Batch(const Batch& batch, std::int64_t begin, std::int64_t end)> slice) const {
    DataLoader loader(*this);
    loader.slice_ = std::move(slice);
    return loader;
  }

  const DataLoaderOptions& options() const { return options_; }  ///< as given
  Dataset& dataset() const { return *dataset_; }                 ///< which all copies of the loader share

  /// Samples in the dataset; 0 for an iterable. Throws DataError when a map-style dataset does not know.
  std::int64_t length() const {
    if constexpr (iterable) {
      return 0;
    } else {
      const std::optional<std::size_t> size = dataset_->size();
      if (!size) throw DataError("the dataset does not know its size; give one that does, or an IterableDataset");
      return static_cast<std::int64_t>(*size);
    }
  }

  /// Reads the samples with given indices as one batch. For map-style datasets.
  std::function<Batch(const std::vector<std::int64_t>&, const ReadContext&)> reader() const {
    return [dataset = dataset_, collate = collate_, stacks = stacks_](const std::vector<std::int64_t>& indices,
                                                                      const ReadContext& context) -> Batch {
      detail::BatchMemory memory(indices.size());
      auto raw = detail::get_batch(*dataset, indices, context, stacks ? &memory : nullptr);
      if constexpr (gives_batches<Dataset>) {
        return raw;
      } else {
        const rng::KeyedGenerator generator(context.seed, context.epoch, kCollating + first_of(indices));
        try {
          if constexpr (std::is_same_v<Batch, DefaultBatch<Sample>>)
            if (stacks) return default_collate(std::move(raw), &memory);
          return collate(std::move(raw));
        } catch (...) {
          detail::throw_sample_error(detail::name_samples(indices), context);
        }
      }
    };
  }

  /// The dataset and what becomes of its samples, for who does not know their types.
  detail::AnyDataset any_dataset() const {
    detail::AnyDataset any{.type = &typeid(Dataset), .sample_type = &typeid(Sample), .batch_type = &typeid(Batch)};
    any.length = [loader = *this] { return loader.length(); };
    any.bytes = detail::bytes_of_batch<Batch>();
    if constexpr (iterable) {
      any.collate = [collate = collate_](std::any samples) {
        return detail::AnyBatch::of(collate(std::any_cast<std::vector<Sample>>(std::move(samples))));
      };
      any.make_windows = [loader = *this](std::int64_t at_once) -> detail::MakeWindow {
        return [dataset = loader.own_stream(), one = loader.one_stream_, at_once] {
          return std::make_unique<detail::SampleWindowOf<Dataset>>(dataset, at_once, one);
        };
      };
    } else {
      any.read = [read = reader()](const std::vector<std::int64_t>& indices, const ReadContext& context) {
        return detail::AnyBatch::of(read(indices, context));
      };
      any.slice = [slice = slice_](detail::AnyBatch& batch, std::int64_t begin, std::int64_t end) {
        return detail::AnyBatch::of(slice(batch.as<Batch>(), begin, end));
      };
      any.set_epoch = epoch_setter();
      any.fingerprint = detail::fingerprint_function(dataset_);
    }
    return any;
  }

 private:
  template <class, class>
  friend class DataLoader;
  using Collate = std::function<Batch(std::vector<Sample>)>;
  using Slice = std::function<Batch(const Batch&, std::int64_t begin, std::int64_t end)>;

  DataLoader(std::shared_ptr<Dataset> dataset, DataLoaderOptions options, Collate collate,
             std::shared_ptr<detail::OneStream> one_stream)
      : dataset_(std::move(dataset)),
        options_(std::move(options)),
        collate_(std::move(collate)),
        one_stream_(std::move(one_stream)) {}

  static std::int64_t first_of(const std::vector<std::int64_t>& indices) {
    return indices.empty() ? 0 : indices.front();
  }

  // A dataset that remembers where it is cannot be read for several loaders at once: each gets a copy, if it can be
  // had.
  std::shared_ptr<Dataset> own_stream() const {
    if constexpr (std::is_copy_constructible_v<Dataset>)
      return std::make_shared<Dataset>(*dataset_);
    else
      return dataset_;
  }

  // Otherwise they take turns.
  static std::shared_ptr<detail::OneStream> first_of_its_streams() {
    return std::is_copy_constructible_v<Dataset> ? nullptr : std::make_shared<detail::OneStream>();
  }

  static Collate default_collation() {
    if constexpr (gives_batches<Dataset>)  // of an iterable: rows that are batches of one
      return [](std::vector<Sample> rows) {
        return data::join_tensors(std::move(rows),
                                  [](const std::vector<at::Tensor>& column) { return at::cat(column); });
      };
    else
      return [](std::vector<Sample> samples) { return default_collate(std::move(samples)); };
  }

  std::function<void(std::int64_t)> epoch_setter() const {
    if constexpr (requires(Dataset & dataset) { dataset.set_epoch(std::int64_t{}); })
      return [dataset = dataset_](std::int64_t epoch) { dataset->set_epoch(epoch); };
    else
      return {};
  }

  std::shared_ptr<Dataset> dataset_;
  DataLoaderOptions options_;
  Collate collate_;
  bool stacks_ = false;                            // collate_ is default_collate
  std::shared_ptr<detail::OneStream> one_stream_;  // null where each loader has a copy
  Slice slice_ = [](const Batch& batch, std::int64_t begin, std::int64_t end) {
    return data::slice(batch, begin, end);  // not a function of the batch's own namespace
  };
};

/// The batch follows from the dataset.
template <class Dataset>
DataLoader(Dataset) -> DataLoader<Dataset>;

/// Of a dataset and options, too.
template <class Dataset>
DataLoader(Dataset, DataLoaderOptions) -> DataLoader<Dataset>;

}  // namespace tandem::data
