// Streams are read by one reader, whatever a copy of them would share.
#include <fstream>
#include <numeric>
#include <sstream>

#include <torch/data/datasets/shared.h>
#include <torch/data/datasets/stateful.h>

#include "support/index_data.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// Gives 0 .. length-1, slowly enough for two that read at once to get into each other's way.
struct Source {
  std::int64_t length, at = 0, inside = 0;
  explicit Source(std::int64_t length) : length(length) {}
  std::optional<std::int64_t> next() {
    if (++inside > 1) throw std::logic_error("two read at once");
    const std::int64_t here = at;
    std::this_thread::yield();
    at = here + 1;
    --inside;
    return here < length ? std::optional(here) : std::nullopt;
  }
};

data::SampleStream<std::int64_t> begin(const std::shared_ptr<Source>& source) {
  source->at = 0;
  return [source] { return source->next(); };
}

// One for which `begin` is given, that cannot be copied.
struct MoveOnly {
  using SampleType = std::int64_t;
  using BatchType = std::vector<std::int64_t>;
  std::unique_ptr<std::shared_ptr<Source>> source;
  data::SampleStream<std::int64_t> begin(std::int64_t) { return ::begin(*source); }
};

// LibTorch's kinds: with a place of its own, which cannot be copied, or that copies share.
struct Stateful : torch::data::datasets::StatefulDataset<Stateful, std::vector<at::Tensor>> {
  std::shared_ptr<Source> source;
  explicit Stateful(std::shared_ptr<Source> source) : source(std::move(source)) {}
  std::optional<std::vector<at::Tensor>> get_batch(std::size_t wanted) override {
    std::vector<at::Tensor> samples;
    for (std::size_t i = 0; i < std::min<std::size_t>(wanted, 3); ++i)
      if (const auto sample = source->next()) samples.push_back(at::scalar_tensor(*sample, at::kLong));
    if (samples.empty()) return std::nullopt;
    return samples;
  }
  void reset() override { source->at = 0; }
  std::optional<std::size_t> size() const override { return std::nullopt; }
  void save(torch::serialize::OutputArchive&) const override {}
  void load(torch::serialize::InputArchive&) override {}
};

struct MoveOnlyStateful : Stateful {
  using Stateful::Stateful;
  MoveOnlyStateful(MoveOnlyStateful&&) = default;
};

struct StreamMode {
  int ranks;
  bool dispatch;
  int workers;
};

StreamMode stream_mode() {
  const int ranks = GENERATE(1, 2, 4);
  const bool dispatch = GENERATE(false, true);
  const int workers = GENERATE(0, 1, 2);
  return {ranks, dispatch, workers};
}

// What the ranks see of a loader that `make(accelerator)` gives, in two epochs, of 37 samples.
template <class Make>
void check_every_sample_comes_once(const StreamMode& how, const Make& make) {
  const LaunchConfig config{.data_loader = {.dispatch_batches = how.dispatch}};
  const auto ranks = on_ranks<std::vector<Epoch>>(how.ranks, config, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(make(accelerator));
    std::vector<Epoch> epochs{one_epoch(loader)};
    accelerator.wait_for_everyone();
    epochs.push_back(one_epoch(loader));
    return epochs;
  });
  const auto expected = epochs_on_ranks(how.ranks, data::DataLoader(Indices(37), {.batch_size = 2}),
                                        {.dispatch_batches = how.dispatch}, 2);
  CHECK(ranks == expected);
}

}  // namespace

TEST_CASE("a stream that cannot be copied, or whose copies share where they read, is read once for all ranks") {
  const StreamMode how = stream_mode();
  CAPTURE(how.ranks, how.dispatch, how.workers);
  const data::DataLoaderOptions options{.batch_size = 2, .workers = how.workers};
  const auto source = std::make_shared<Source>(37);
  {
    const data::DataLoader loader(MoveOnly{std::make_unique<std::shared_ptr<Source>>(source)}, options);
    check_every_sample_comes_once(how, [&](Accelerator&) { return loader; });
  }
  {
    const data::DataLoader loader(data::IterableDataset([source](std::int64_t) { return begin(source); }), options);
    check_every_sample_comes_once(how, [&](Accelerator&) { return loader; });
  }
  {  // made by each rank, of what is outside
    check_every_sample_comes_once(how, [&](Accelerator&) {
      return data::DataLoader(data::IterableDataset([&source](std::int64_t) { return begin(source); }), options);
    });
  }
  {
    const data::DataLoader loader(MoveOnlyStateful(source), options);
    check_every_sample_comes_once(how, [&](Accelerator&) { return loader; });
  }
  {
    const data::DataLoader loader(torch::data::datasets::make_shared_dataset<Stateful>(source), options);
    check_every_sample_comes_once(how, [&](Accelerator&) { return loader; });
  }
  {  // a file
    std::stringstream file;
    for (int i = 0; i < 37; ++i) file << i << '\n';
    const auto from_the_beginning = [&file](std::int64_t) {
      file.clear();
      file.seekg(0);
      return [&file]() -> std::optional<std::int64_t> {
        std::int64_t number = 0;
        return file >> number ? std::optional(number) : std::nullopt;
      };
    };
    const data::DataLoader loader(data::IterableDataset{from_the_beginning}, options);
    check_every_sample_comes_once(how, [&](Accelerator&) { return loader; });
  }
}

TEST_CASE("loaders of one dataset that cannot be copied take turns, and one that is interrupted ends with an error") {
  const StreamMode how = stream_mode();
  CAPTURE(how.ranks, how.dispatch, how.workers);
  const auto source = std::make_shared<Source>(97);
  const data::DataLoaderOptions options{.batch_size = 2, .workers = how.workers};
  const auto check = [&](const auto& loader) {
    run_ranks(how.ranks, {.data_loader = {.dispatch_batches = how.dispatch}}, [&](Accelerator& accelerator) {
      auto first = accelerator.prepare(loader), second = accelerator.prepare(loader);
      const Epoch whole = one_epoch(first);
      if (!(one_epoch(second) == whole)) throw Error("the second loader gave other samples");
      for (auto& batch : first) {
        (void)batch;
        if (!(one_epoch(second) == whole)) throw Error("an inner loop gave other samples");
      }
    });
  };
  const auto is_said = ContainsSubstring("cannot be copied is read by another loop now");
  CHECK_THROWS_WITH(check(data::DataLoader(MoveOnly{std::make_unique<std::shared_ptr<Source>>(source)}, options)),
                    is_said);
  CHECK_THROWS_WITH(check(data::DataLoader(MoveOnlyStateful(source), options)), is_said);
  CHECK_THROWS_WITH(
      check(data::DataLoader(MoveOnlyStateful(source), options).with_collate([](std::vector<at::Tensor> samples) {
        return at::stack(samples);
      })),
      is_said);
}

TEST_CASE("four thousand samples of one file come once each on four ranks that read as fast as they can") {
  const auto source = std::make_shared<Source>(4000);
  const data::DataLoader loader(MoveOnly{std::make_unique<std::shared_ptr<Source>>(source)}, {.batch_size = 10});
  const auto ranks = epochs_on_ranks(4, loader, {.dispatch_batches = false});
  Batch seen;
  for (const auto& epochs : ranks)
    for (const Batch& batch : epochs[0]) seen.insert(seen.end(), batch.begin(), batch.end());
  std::sort(seen.begin(), seen.end());
  Batch expected(4000);
  std::iota(expected.begin(), expected.end(), std::int64_t{0});
  CHECK(seen == expected);
}

TEST_CASE("ranks take their parts of a stream at their own pace, one after the other or all of an epoch at once") {
  const auto source = std::make_shared<Source>(12);
  const data::DataLoader loader(data::IterableDataset([source](std::int64_t) { return begin(source); }),
                                {.batch_size = 2});
  const auto ranks =
      on_ranks<std::vector<Epoch>>(3, {.data_loader = {.dispatch_batches = false}}, [&](Accelerator& accelerator) {
        auto prepared = accelerator.prepare(loader);
        std::vector<Epoch> epochs;
        for (int turn = 0; turn < 3; ++turn) {
          if (turn == accelerator.rank()) epochs.push_back(one_epoch(prepared));
          accelerator.wait_for_everyone();
        }
        epochs.push_back(one_epoch(prepared));
        return epochs;
      });
  for (std::size_t rank = 0; rank < 3; ++rank) {
    const auto first = static_cast<std::int64_t>(2 * rank);
    CHECK(ranks[rank] == std::vector<Epoch>(2, {{first, first + 1}, {first + 6, first + 7}}));
  }
}

TEST_CASE("what a stream draws as it is begun and read is the same on every number of ranks") {
  const auto read = [](int ranks, bool dispatch, int workers) {
    return on_ranks<at::Tensor>(ranks, {.data_loader = {.dispatch_batches = dispatch}}, [&](Accelerator& accelerator) {
      // The shards of a data set in another order each epoch, and augmentation.
      const data::IterableDataset dataset([](std::int64_t) {
        return [order = torch::randperm(16, at::kDouble), at = 0]() mutable -> std::optional<at::Tensor> {
          if (at == 16) return std::nullopt;
          return order[at++] + torch::rand({}, at::kDouble);
        };
      });
      auto loader = accelerator.prepare(data::DataLoader(dataset, {.batch_size = 8 / ranks, .workers = workers}));
      std::vector<at::Tensor> seen;
      for (int epoch = 0; epoch < 2; ++epoch)
        for (auto& batch : loader) seen.push_back(accelerator.gather(batch));
      return at::cat(seen);
    })[0];
  };
  const at::Tensor expected = read(1, false, 0);
  CHECK(expected.numel() == 32);
  CHECK_FALSE(at::equal(expected.slice(0, 0, 16), expected.slice(0, 16, 32)));
  for (const int ranks : {1, 2, 4})
    for (const bool dispatch : {false, true})
      for (const int workers : {0, 2}) CHECK(at::equal(read(ranks, dispatch, workers), expected));
}

TEST_CASE("a shared stream is left early, skipped and resumed as any other") {
  const auto source = std::make_shared<Source>(20);
  const data::DataLoader loader(data::IterableDataset([source](std::int64_t) { return begin(source); }),
                                {.batch_size = 2});
  const auto ranks =
      on_ranks<std::vector<Epoch>>(2, {.data_loader = {.dispatch_batches = false}}, [&](Accelerator& accelerator) {
        auto prepared = accelerator.prepare(loader);
        std::vector<Epoch> seen(3);
        data::LoaderState state;
        for (auto& batch : prepared) {
          seen[0].push_back(list(batch));
          state = prepared.state_dict();
          if (seen[0].size() == 2) break;
        }
        accelerator.wait_for_everyone();
        seen[1] = one_epoch(prepared.skip_first_batches(3));
        accelerator.wait_for_everyone();
        prepared.load_state_dict(state);
        seen[2] = one_epoch(prepared);
        return seen;
      });
  CHECK(ranks[0] == std::vector<Epoch>{{{0, 1}, {4, 5}}, {{12, 13}, {16, 17}}, {{8, 9}, {12, 13}, {16, 17}}});
  CHECK(ranks[1] == std::vector<Epoch>{{{2, 3}, {6, 7}}, {{14, 15}, {18, 19}}, {{10, 11}, {14, 15}, {18, 19}}});
}

TEST_CASE("ranks that leave a shared stream at different steps get an error, not each other's samples") {
  const auto source = std::make_shared<Source>(20);
  const data::DataLoader loader(data::IterableDataset([source](std::int64_t) { return begin(source); }),
                                {.batch_size = 2});
  const auto error =
      run_ranks_expecting_error(2, {.data_loader = {.dispatch_batches = false}}, [&](Accelerator& accelerator) {
        auto prepared = accelerator.prepare(loader);
        for (auto& batch : prepared) {
          (void)batch;
          if (accelerator.is_main()) break;
          accelerator.wait_for_everyone();  // for rank 0 to be in another epoch
          accelerator.wait_for_everyone();
        }
        accelerator.wait_for_everyone();
        auto other = prepared.begin();
        accelerator.wait_for_everyone();
        accelerator.wait_for_everyone();
      });
  CHECK_THAT(error.what(), ContainsSubstring("at the same step"));
}

TEST_CASE("what goes wrong in a shared stream is every rank's error, and a rank that fails ends a read that waits") {
  const auto failing_stream = [](std::int64_t) {
    return [at = std::int64_t{0}]() mutable -> std::optional<std::int64_t> {
      if (at == 9) throw std::runtime_error("the line went dead");
      return at++;
    };
  };
  const data::DataLoader failing(data::IterableDataset{failing_stream}, {.batch_size = 2});
  std::atomic<int> told{0};
  run_ranks(2, {.data_loader = {.dispatch_batches = false}}, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(failing);
    try {
      one_epoch(loader);
    } catch (const SampleError& error) {
      const std::string text = error.what();
      told += text.find("sample 9 of the stream") != std::string::npos &&
              text.find("the line went dead") != std::string::npos;
    }
  });
  CHECK(told == 2);
  const int failing_rank = GENERATE(0, 1);
  const int workers = GENERATE(0, 2);
  CAPTURE(failing_rank, workers);
  const auto waiting_stream = [](std::int64_t) {
    return [at = std::int64_t{0}]() mutable -> std::optional<std::int64_t> {
      while (at > 12 && !work_is_unwanted()) std::this_thread::yield();
      return at++;
    };
  };
  const data::DataLoader waiting(data::IterableDataset{waiting_stream}, {.batch_size = 2, .workers = workers});
  const auto error =
      run_ranks_expecting_error(2, {.data_loader = {.dispatch_batches = false}}, [&](Accelerator& accelerator) {
        auto loader = accelerator.prepare(waiting);
        for (auto& batch : loader) {
          (void)batch;
          if (accelerator.rank() == failing_rank) throw std::runtime_error("enough");
        }
      });
  CHECK_THAT(error.what(), ContainsSubstring("enough"));
}
