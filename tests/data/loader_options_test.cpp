// What loaders can be made of, and with which options: streams, samplers, workers, collations.
#include <algorithm>
#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include <torch/data/datasets/stateful.h>
#include <torch/data/datasets/tensor.h>
#include <torch/data/samplers/random.h>
#include <torch/data/samplers/sequential.h>
#include <torch/data/transforms/lambda.h>
#include <torch/data/transforms/stack.h>

#include "support/index_data.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Ranks = std::vector<std::vector<Epoch>>;

struct FixedBatches final : data::BatchSampler {
  Batches all;
  explicit FixedBatches(Batches all) : all(std::move(all)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(all.size()); }
  Batches batches(std::int64_t) override { return all; }
};

// Gives 0 .. length-1 in chunks of at most 5, as LibTorch's ChunkDataset would.
struct Chunks : torch::data::datasets::StatefulDataset<Chunks, std::vector<at::Tensor>> {
  std::int64_t length, at = 0;
  explicit Chunks(std::int64_t length) : length(length) {}
  std::optional<std::vector<at::Tensor>> get_batch(std::size_t wanted) override {
    std::vector<at::Tensor> samples;
    for (std::size_t i = 0; i < std::min<std::size_t>(wanted, 5) && at < length; ++i)
      samples.push_back(at::scalar_tensor(at++, at::kLong));
    if (samples.empty()) return std::nullopt;
    return samples;
  }
  void reset() override { at = 0; }
  std::optional<std::size_t> size() const override { return std::nullopt; }
  void save(torch::serialize::OutputArchive&) const override {}
  void load(torch::serialize::InputArchive&) override {}
};

struct Stream : torch::data::datasets::StreamDataset<Stream, at::Tensor> {
  std::int64_t at = 0;
  at::Tensor get_batch(std::size_t wanted) override {
    at += static_cast<std::int64_t>(wanted);
    return at::arange(at - static_cast<std::int64_t>(wanted), at, at::kLong);
  }
  std::optional<std::size_t> size() const override { return 13; }
};

std::vector<at::Tensor> tensors_of_epoch(int ranks, const data::DataLoader<Augmented>& loader, bool dispatch) {
  const auto parts =
      on_ranks<at::Tensor>(ranks, {.data_loader = {.dispatch_batches = dispatch}}, [&](Accelerator& accelerator) {
        auto prepared = accelerator.prepare(loader);
        std::vector<at::Tensor> gathered;
        for (int epoch = 0; epoch < 2; ++epoch)
          for (auto& batch : prepared) gathered.push_back(accelerator.gather_for_metrics(batch));
        return at::cat(gathered);
      });
  return parts;
}

}  // namespace

TEST_CASE("an iterable is dealt out as a map-style dataset of the same length would be") {
  const int ranks = GENERATE(1, 2, 3);
  const int length = GENERATE(0, 1, 5, 12, 13, 31);
  const bool dispatch = GENERATE(false, true);
  const bool drop_last = GENERATE(false, true);
  const int workers = GENERATE(0, 2);
  CAPTURE(ranks, length, dispatch, drop_last, workers);
  const data::DataLoaderOptions options{.batch_size = 3, .drop_last = drop_last, .workers = workers};
  const auto of_indices = epochs_on_ranks(ranks, data::DataLoader(Indices(static_cast<std::size_t>(length)), options),
                                          {.dispatch_batches = dispatch}, 2);
  CHECK(epochs_on_ranks(ranks, data::DataLoader(counting(length), options), {.dispatch_batches = dispatch}, 2) ==
        of_indices);
  CHECK(epochs_on_ranks(ranks, data::DataLoader(Chunks(length), options), {.dispatch_batches = dispatch}, 2) ==
        of_indices);
}

TEST_CASE("by default iterables are dispatched, and ranges, streams and skipping work") {
  CHECK(epochs_on_ranks(2, data::DataLoader(data::IterableDataset(std::vector<int>{5, 6, 7}), {.batch_size = 2}), {},
                        2) == Ranks{{{{5, 6}}, {{5, 6}}}, {{{7, 5}}, {{7, 5}}}});
  CHECK(epochs_on_ranks(2, data::DataLoader(Stream(), {.batch_size = 4})) ==
        Ranks{{{{0, 1, 2, 3}, {8, 9, 10}}}, {{{4, 5, 6, 7}, {11, 12, 0}}}});
  CHECK(epochs_on_ranks(2, data::DataLoader(counting(13), {.batch_size = 2}), {.dispatch_batches = false}, 1, 2) ==
        Ranks{{{{8, 9}, {12, 0}}}, {{{10, 11}, {1, 2}}}});
}

TEST_CASE("an iterable knows its remainder at the end, and gather_for_metrics gives each sample once") {
  for (const bool dispatch : {false, true}) {
    const auto gathered =
        on_ranks<Batch>(3, {.data_loader = {.dispatch_batches = dispatch}}, [](Accelerator& accelerator) {
          auto loader = accelerator.prepare(data::DataLoader(counting(20), {.batch_size = 2}));
          Batch all;
          for (auto& batch : loader) {
            const Batch part = list(accelerator.gather_for_metrics(batch));
            all.insert(all.end(), part.begin(), part.end());
          }
          all.push_back(loader.remainder());
          return all;
        });
    Batch expected;
    for (int i = 0; i < 20; ++i) expected.push_back(i);
    expected.push_back(2);
    for (const auto& rank : gathered) CHECK(rank == expected);
  }
}

TEST_CASE("the same batches come with 0, 1 and 3 workers, in shard and in dispatch mode") {
  const bool dispatch = GENERATE(false, true);
  const int ranks = GENERATE(1, 2, 3);
  const data::DataLoaderOptions options{.batch_size = 3, .shuffle = true, .seed = 7};
  const auto expected =
      epochs_on_ranks(ranks, data::DataLoader(Indices(50), options), {.dispatch_batches = dispatch}, 3);
  for (const int workers : {1, 3}) {
    auto more = options;
    more.workers = workers;
    more.prefetch = workers;
    CHECK(epochs_on_ranks(ranks, data::DataLoader(Indices(50), more), {.dispatch_batches = dispatch}, 3) == expected);
  }
}

TEST_CASE("what a sample's transform draws depends on seed, epoch and index only") {
  const auto expected = tensors_of_epoch(1, data::DataLoader(Augmented(26), {.batch_size = 4}), false)[0];
  CHECK(expected.sizes() == std::vector<std::int64_t>{52, 2});
  CHECK(std::get<0>(at::_unique(expected.select(1, 1))).numel() == 52);  // by sample and by epoch
  for (const int ranks : {1, 2, 4})
    for (const int workers : {0, 1, 8})
      for (const bool dispatch : {false, true}) {
        CAPTURE(ranks, workers, dispatch);
        const data::DataLoader loader(Augmented(26), {.batch_size = 4 / ranks, .workers = workers});
        for (const auto& seen : tensors_of_epoch(ranks, loader, dispatch)) CHECK(at::equal(seen, expected));
      }
  const auto other = tensors_of_epoch(1, data::DataLoader(Augmented(26), {.batch_size = 4, .seed = 8}), false)[0];
  CHECK(!at::equal(other.select(1, 1), expected.select(1, 1)));
}

TEST_CASE("transforms of a mapped dataset draw by sample too") {
  const auto mapped = [] {
    return torch::data::datasets::TensorDataset(at::arange(12, at::kDouble))
        .map(torch::data::transforms::Lambda<torch::data::TensorExample>(
            [](torch::data::TensorExample example) { return torch::data::TensorExample(example.data + at::rand({})); }))
        .map(torch::data::transforms::Stack<torch::data::TensorExample>());
  };
  const auto read = [&](int ranks, std::int64_t batch_size) {
    return on_ranks<at::Tensor>(ranks, [&](Accelerator& accelerator) {
      auto loader = accelerator.prepare(data::DataLoader(mapped(), {.batch_size = batch_size}));
      std::vector<at::Tensor> seen;
      for (auto& batch : loader) seen.push_back(accelerator.gather(batch.data));
      return at::cat(seen);
    })[0];
  };
  CHECK(at::equal(read(1, 6), read(3, 2)));
}

TEST_CASE("transforms of whole batches draw by batch, whoever reads it, and leave the rank's generator alone") {
  using Samples = std::vector<torch::data::TensorExample>;
  struct Noise : torch::data::transforms::BatchTransform<Samples, torch::data::TensorExample> {
    torch::data::TensorExample apply_batch(Samples samples) override {
      std::vector<at::Tensor> rows;
      for (const auto& sample : samples) rows.push_back(sample.data);
      const at::Tensor batch = at::stack(rows);
      return batch + at::rand(batch.sizes());
    }
  };
  const auto read = [](int workers) {
    return on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
      auto dataset = torch::data::datasets::TensorDataset(at::arange(24, at::kFloat)).map(Noise());
      auto loader = accelerator.prepare(data::DataLoader(dataset, {.batch_size = 3, .workers = workers}));
      std::vector<at::Tensor> seen;
      for (auto& batch : loader) seen.push_back(batch.data);
      return std::vector<at::Tensor>{at::cat(seen), at::rand({4})};
    });
  };
  static_assert(data::detail::times_mapped<torch::data::datasets::MapDataset<
                    torch::data::datasets::MapDataset<torch::data::datasets::TensorDataset, Noise>, Noise>>() == 2);
  const auto alone = read(0), helped = read(2);
  for (std::size_t rank = 0; rank < 2; ++rank) {
    CHECK(at::equal(alone[rank][0], helped[rank][0]));
    CHECK(at::equal(alone[rank][1], helped[rank][1]));
  }
}

TEST_CASE("reading samples leaves the rank's own generator alone") {
  const auto drawn = on_ranks<double>(1, [](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Augmented(5), {.batch_size = 5}));
    for (auto& batch : loader) (void)batch;
    return at::rand({}).item<double>();
  });
  torch::manual_seed(42);
  CHECK(drawn[0] == at::rand({}).item<double>());
}

TEST_CASE("out of order every sample comes once, and the last step stays the last") {
  const bool dispatch = GENERATE(false, true);
  const auto ranks = epochs_on_ranks(
      2, data::DataLoader(Indices(43), {.batch_size = 2, .workers = 3, .prefetch = 3, .in_order = false}),
      {.dispatch_batches = dispatch}, 2);
  for (int epoch = 0; epoch < 2; ++epoch) {
    std::multiset<std::int64_t> seen;
    for (const auto& rank : ranks)
      for (const auto& batch : rank[static_cast<std::size_t>(epoch)]) seen.insert(batch.begin(), batch.end());
    for (std::int64_t i = 0; i < 43; ++i) CHECK(seen.count(i) >= 1);
    CHECK(seen.size() == 44);
    CHECK(ranks[0][static_cast<std::size_t>(epoch)].back().front() >= 40);
  }
}

TEST_CASE("samplers of LibTorch and of the user decide the order") {
  const auto sequential = std::make_shared<torch::data::samplers::SequentialSampler>(6);
  CHECK(epochs_on_ranks(
            2, data::DataLoader(Indices(10),
                                {.batch_size = 2, .sampler = std::make_shared<data::TorchSampler>(sequential, 6)})) ==
        Ranks{{{{0, 1}, {4, 5}}}, {{{2, 3}, {0, 1}}}});
  struct Backwards final : data::Sampler {
    data::EpochOrder begin(std::int64_t length, std::int64_t, bool) override {
      return data::EpochOrder(at::arange(length - 1, -1, -1, at::kLong));
    }
  };
  CHECK(epochs_on_ranks(2, data::DataLoader(Indices(4), {.batch_size = 1, .sampler = std::make_shared<Backwards>()}),
                        {.dispatch_batches = true}) == Ranks{{{{3}, {1}}}, {{{2}, {0}}}});
  const auto random = std::make_shared<torch::data::samplers::RandomSampler>(10);
  const auto wrong = run_ranks_expecting_error(1, [&](Accelerator& accelerator) {
    one_epoch(accelerator.prepare(
        data::DataLoader(Indices(10), {.sampler = std::make_shared<data::TorchSampler>(random, 9)})));
  });
  CHECK_THAT(wrong.what(), ContainsSubstring("gave 10") && ContainsSubstring("9 were expected"));
}

TEST_CASE("whole batches of a batch sampler are dealt round-robin") {
  const auto sampler = std::make_shared<FixedBatches>(data::BatchSampler::Batches{{0, 1}, {2}, {3, 4, 5}, {6}, {7}});
  const data::DataLoader loader(Indices(8), {.batch_sampler = sampler});
  CHECK(epochs_on_ranks(2, loader) == Ranks{{{{0, 1}, {3, 4, 5}, {7}}}, {{{2}, {6}, {0, 1}}}});
  CHECK(epochs_on_ranks(2, loader, {.even_batches = false}) == Ranks{{{{0, 1}, {3, 4, 5}, {7}}}, {{{2}, {6}}}});
  CHECK(epochs_on_ranks(1, loader) == Ranks{{{{0, 1}, {2}, {3, 4, 5}, {6}, {7}}}});
  // Dispatched: joined and split evenly; the last round is filled up from the epoch's first samples.
  CHECK(epochs_on_ranks(2, loader, {.dispatch_batches = true}) == Ranks{{{{0}, {3, 4}, {7}}}, {{{1}, {5, 6}, {0}}}});
  const auto lengths =
      on_ranks<std::vector<std::int64_t>>(2, {.data_loader = {.even_batches = false}}, [&](Accelerator& accelerator) {
        const auto prepared = accelerator.prepare(loader);
        return std::vector<std::int64_t>{prepared.len(), prepared.steps_without_batch()};
      });
  CHECK(lengths == std::vector<std::vector<std::int64_t>>{{3, 0}, {2, 1}});
  const auto error = run_ranks_expecting_error(2, {.data_loader = {.split_batches = true}},
                                               [&](Accelerator& accelerator) { accelerator.prepare(loader); });
  CHECK_THROWS_AS(error.rethrow_cause(), ConfigError);
}

TEST_CASE("a BatchSamplerShard alone gives a rank what a prepared loader would") {
  const data::BatchSampler::Batches batches{{0, 1}, {2}, {3, 4, 5}, {6}, {7}};
  const auto whole = std::make_shared<FixedBatches>(batches);
  const data::DataLoader loader(Indices(8), {.batch_sampler = whole});
  for (const bool even : {true, false})
    for (const int ranks : {1, 2, 3, 7}) {
      CAPTURE(even, ranks);
      const auto prepared = epochs_on_ranks(ranks, loader, {.even_batches = even});
      for (int rank = 0; rank < ranks; ++rank) {
        data::BatchSamplerShard shard(whole, ranks, rank, even);
        CHECK(shard.batches(0) == prepared[static_cast<std::size_t>(rank)][0]);
        CHECK(shard.size() == static_cast<std::int64_t>(shard.batches(0).size()));
      }
    }
  CHECK_THROWS_AS(data::BatchSamplerShard(whole, 2, 2), ConfigError);
  CHECK_THROWS_AS(data::BatchSamplerShard(nullptr, 2, 0), ConfigError);
}

TEST_CASE("a generator of the loader's own decides the order, from the state it has at prepare") {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const auto own = epochs_on_ranks(
      2, data::DataLoader(Indices(11), {.batch_size = 2, .shuffle = true, .generator = generator}), {}, 2);
  CHECK(own == epochs_on_ranks(2, data::DataLoader(Indices(11), {.batch_size = 2, .shuffle = true, .seed = 7}), {}, 2));
}

TEST_CASE("samples become what stacking them gives, whatever their tensors are like") {
  using Make = std::function<at::Tensor(int index)>;
  const auto numbers = [](int index) { return at::arange(index, index + 8192, at::kFloat).view({2, 64, 64}); };
  const std::vector<std::pair<std::string, Make>> kinds{
      {"large", numbers},
      {"small", [](int index) { return at::arange(index, index + 4); }},
      {"of no dimension", [](int index) { return at::scalar_tensor(index); }},
      {"transposed", [=](int index) { return numbers(index).transpose(0, 2); }},
      {"transposed in turns", [=](int index) { return index % 2 ? numbers(index) : numbers(index).transpose(1, 2); }},
      {"expanded",
       [=](int index) {
         return numbers(index)[0].expand({2, 64, 64});
       }},
      {"channels last",
       [=](int index) { return numbers(index).unsqueeze(0).contiguous(at::MemoryFormat::ChannelsLast); }},
      {"of two types", [=](int index) { return numbers(index).to(index % 3 ? at::kFloat : at::kDouble); }},
      {"complex, pending", [=](int index) { return at::complex(numbers(index), numbers(index)).conj(); }},
      {"with a gradient", [=](int index) { return numbers(index).requires_grad_(); }},
      {"with a gradient in turns", [=](int index) { return numbers(index).requires_grad_(index % 2 == 1); }},
      {"sparse", [=](int index) { return numbers(index).to_sparse(); }}};
  struct Two : torch::data::datasets::Dataset<Two, torch::data::Example<>> {
    Make first, second;
    Two(Make first, Make second) : first(std::move(first)), second(std::move(second)) {}
    torch::data::Example<> get(std::size_t index) override {
      return {first(static_cast<int>(index)), second(static_cast<int>(index))};
    }
    std::optional<std::size_t> size() const override { return 7; }
  };
  const auto same = [](const at::Tensor& a, const at::Tensor& b) {
    return a.scalar_type() == b.scalar_type() && a.layout() == b.layout() && a.strides() == b.strides() &&
           a.requires_grad() == b.requires_grad() && at::equal(a, b);
  };
  for (const auto& [name, make] : kinds)
    for (const auto& [other_name, other] : {kinds.front(), kinds[1]}) {
      CAPTURE(name, other_name);
      const Two dataset(make, other);
      const auto right = on_ranks<bool>(1, [&](Accelerator& a) {
        auto loader = a.prepare(data::DataLoader(dataset, {.batch_size = 3}));
        int index = 0;
        bool all = true;
        for (auto& batch : loader) {
          std::vector<at::Tensor> first, second;
          for (const std::int64_t end = index + batch.target.size(0); index < end; ++index) {
            first.push_back(dataset.first(index));
            second.push_back(dataset.second(index));
          }
          const bool sparse = first.front().is_sparse();
          const at::Tensor expected = at::stack(first);
          all = all && (sparse ? at::equal(batch.data.to_dense(), expected.to_dense()) : same(batch.data, expected)) &&
                same(batch.target, at::stack(second));
        }
        return all && index == 7;
      });
      CHECK(right == std::vector<bool>{true});
    }
}

TEST_CASE("a sample is not in memory beside its batch, and a batch shares none with what the dataset keeps") {
  static std::atomic<int> alive = 0, most = 0;
  struct Kept : torch::data::datasets::Dataset<Kept, at::Tensor> {
    at::Tensor rows = at::rand({64, 8192});
    at::Tensor get(std::size_t index) override {
      most = std::max<int>(most, ++alive);
      const at::Tensor row = rows[static_cast<std::int64_t>(index)];
      return at::from_blob(
          row.data_ptr(), row.sizes(), [row](void*) { alive -= 1; }, at::kFloat);
    }
    std::optional<std::size_t> size() const override { return 64; }
  };
  const Kept dataset;
  const int workers = GENERATE(0, 2);
  most = 0;
  run_ranks(1, [&](Accelerator& a) {
    auto loader = a.prepare(data::DataLoader(dataset, {.batch_size = 16, .workers = workers}));
    for (auto& batch : loader) batch.zero_();
  });
  CHECK(dataset.rows.gt(0).any().item<bool>());
  CHECK(dataset.rows.eq(0).sum().item<int>() < 10);
  CHECK(alive == 0);
  CHECK(most <= std::max(workers, 1));
}

TEST_CASE("samples of different shapes are refused by name, wherever they come in a batch") {
  struct Shapes : torch::data::datasets::Dataset<Shapes, at::Tensor> {
    std::size_t odd;
    explicit Shapes(std::size_t odd) : odd(odd) {}
    at::Tensor get(std::size_t index) override { return at::ones({index == odd ? 5000 : 8192}); }
    std::optional<std::size_t> size() const override { return 4; }
  };
  for (const std::size_t odd : {0, 1, 3}) {
    const auto error = run_ranks_expecting_error(1, [&](Accelerator& a) {
      for (auto& batch : a.prepare(data::DataLoader(Shapes(odd), {.batch_size = 4}))) (void)batch;
    });
    CHECK_THAT(error.what(), ContainsSubstring("sample 0 has [" + std::string(odd == 0 ? "5000" : "8192")) &&
                                 ContainsSubstring(odd == 0 ? "sample 1 has [8192]" : "has [5000]"));
  }
}

TEST_CASE("a collation of the user's makes any batch of samples, a slice function divides it") {
  const auto sums = on_ranks<std::vector<double>>(2, [](Accelerator& accelerator) {
    const data::DataLoader plain(Augmented(8), {.batch_size = 2});
    auto loader = accelerator.prepare(plain.with_collate([](std::vector<at::Tensor> samples) {
      double sum = 0;
      for (const auto& sample : samples) sum += sample[0].item<double>();
      return sum;
    }));
    std::vector<double> seen;
    for (auto& batch : loader) seen.push_back(batch);
    return seen;
  });
  CHECK(sums == std::vector<std::vector<double>>{{1, 9}, {5, 13}});
  std::atomic<int> calls{0};
  const auto sliced = data::DataLoader(Indices(8), {.batch_size = 4})
                          .with_slice([&](const at::Tensor& batch, std::int64_t begin, std::int64_t end) {
                            calls += 1;
                            return batch.slice(0, begin, end);
                          });
  CHECK(epochs_on_ranks(2, sliced, {.split_batches = true, .dispatch_batches = true}) ==
        Ranks{{{{0, 1}, {4, 5}}}, {{{2, 3}, {6, 7}}}});
  CHECK(calls == 4);
}

TEST_CASE("dispatched slices are views of one batch, and whole batches are handed over as they were made") {
  struct Rows : torch::data::datasets::BatchDataset<Rows, at::Tensor> {
    at::Tensor data = at::arange(64, at::kFloat).view({16, 4});
    at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
      return data.slice(0, static_cast<std::int64_t>(indices.front()), static_cast<std::int64_t>(indices.back()) + 1);
    }
    std::optional<std::size_t> size() const override { return 16; }
  };
  for (const bool split : {false, true}) {
    const Rows rows;
    const LaunchConfig config{.data_loader = {.split_batches = split, .dispatch_batches = true}};
    const auto shared = on_ranks<int>(2, config, [&](Accelerator& accelerator) {
      auto loader = accelerator.prepare(data::DataLoader(rows, {.batch_size = 4}));
      int views = 0;
      for (auto& batch : loader) views += batch.is_alias_of(rows.data);
      return views;
    });
    CHECK(shared == std::vector<int>(2, split ? 4 : 2));
  }
}

TEST_CASE("samples of different shapes can be dispatched, a batch a rank") {
  struct Ragged : torch::data::datasets::BatchDataset<Ragged, at::Tensor> {
    at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
      return at::ones({static_cast<std::int64_t>(indices.size()), static_cast<std::int64_t>(indices[0]) + 1});
    }
    std::optional<std::size_t> size() const override { return 8; }
  };
  const auto widths =
      on_ranks<std::int64_t>(2, {.data_loader = {.dispatch_batches = true}}, [](Accelerator& accelerator) {
        std::int64_t sum = 0;
        for (auto& batch : accelerator.prepare(data::DataLoader(Ragged(), {.batch_size = 2}))) sum += batch.size(1);
        return sum;
      });
  CHECK(widths == std::vector<std::int64_t>{1 + 5, 3 + 7});
}

TEST_CASE("worker_init is called by each worker with its number, before it reads") {
  std::mutex mutex;
  std::multiset<int> numbers;
  run_ranks(2, [&](Accelerator& accelerator) {
    const auto note = [&](int number) {
      const std::lock_guard lock(mutex);
      numbers.insert(number);
    };
    auto loader = accelerator.prepare(data::DataLoader(Indices(40), {.workers = 3, .worker_init = note}));
    for (bool all = false; !all && !accelerator.cancelled();) {
      const std::lock_guard lock(mutex);
      all = numbers.size() == 3;
    }
    one_epoch(loader);
  });
  CHECK(numbers == std::multiset<int>{0, 1, 2});
}

TEST_CASE("a dataset with set_epoch is told which epoch begins") {
  struct Told : Indices {
    std::vector<std::int64_t>* epochs;
    Told(std::vector<std::int64_t>& epochs) : Indices(4), epochs(&epochs) {}
    void set_epoch(std::int64_t epoch) { epochs->push_back(epoch); }
  };
  const auto told = on_ranks<std::vector<std::int64_t>>(2, [](Accelerator& accelerator) {
    std::vector<std::int64_t> epochs;
    auto loader = accelerator.prepare(data::DataLoader(Told(epochs), {}));
    one_epoch(loader);
    one_epoch(loader);
    loader.set_epoch(7);
    one_epoch(loader);
    return epochs;
  });
  CHECK(told[1] == std::vector<std::int64_t>{0, 1, 7});
}

TEST_CASE("options that do not go together are errors that say what would be right") {
  const auto text_of = [](const data::DataLoaderOptions& options) {
    return std::string(run_ranks_expecting_error(1, [&](Accelerator& accelerator) {
                         accelerator.prepare(data::DataLoader(Indices(4), options));
                       }).what());
  };
  const auto sampler = std::make_shared<data::SequentialSampler>();
  const auto batches = std::make_shared<FixedBatches>(data::BatchSampler::Batches{{0}});
  CHECK_THAT(text_of({.shuffle = true, .sampler = sampler}), ContainsSubstring("exclude"));
  CHECK_THAT(text_of({.batch_size = 2, .batch_sampler = batches}), ContainsSubstring("batch_sampler excludes"));
  CHECK_THAT(text_of({.workers = -1}), ContainsSubstring("workers -1"));
  CHECK_THAT(text_of({.prefetch = 0}), ContainsSubstring("use 1 or more"));
  CHECK_THAT(text_of({.timeout = std::chrono::milliseconds(0)}), ContainsSubstring("timeout"));
  const auto shuffled =
      run_ranks_expecting_error(1, [](Accelerator& a) { a.prepare(data::DataLoader(counting(3), {.shuffle = true})); });
  CHECK_THROWS_AS(shuffled.rethrow_cause(), DataError);
}

TEST_CASE("with rng_types cpu all ranks get rank 0's generator when an epoch begins") {
  const auto draw = [](std::vector<data::RngType> types) {
    return on_ranks<std::vector<double>>(3, {.data_loader = {.rng_types = types}}, [](Accelerator& accelerator) {
      auto loader = accelerator.prepare(data::DataLoader(Indices(6), {}));
      std::vector<double> drawn;
      for (int epoch = 0; epoch < 2; ++epoch) {
        for (int i = 0; i < accelerator.rank(); ++i) at::rand({});
        one_epoch(loader);
        drawn.push_back(at::rand({}).item<double>());
      }
      return drawn;
    });
  };
  const auto same = draw({data::RngType::generator, data::RngType::cpu});
  CHECK(same[1] == same[0]);
  CHECK(same[2] == same[0]);
  CHECK(draw({data::RngType::generator})[1] != same[0]);
}
