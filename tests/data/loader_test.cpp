// Loaders on ranks: order, epochs, metrics, dispatch.
#include <torch/data/datasets/tensor.h>
#include <torch/data/transforms/stack.h>

#include "support/index_data.h"

using namespace tandem;
using namespace tandem::test;

namespace {

std::vector<std::vector<Epoch>> epochs_on_ranks(int ranks, std::size_t length, data::DataLoaderOptions options,
                                                data::DataLoaderConfiguration configuration, int epochs,
                                                std::int64_t skip = 0) {
  return test::epochs_on_ranks(ranks, data::DataLoader(Indices(length), options), configuration, epochs, skip);
}

}  // namespace

TEST_CASE("worked examples 10 to 13: shuffling with a seed, in both modes, and skipping") {
  const data::DataLoaderOptions shuffled{.batch_size = 2, .shuffle = true, .seed = 7};
  CHECK(epochs_on_ranks(2, 11, shuffled, {}, 2) ==
        std::vector<std::vector<Epoch>>{{{{1, 7}, {10, 4}, {3, 5}}, {{4, 9}, {7, 2}, {8, 3}}},
                                        {{{6, 2}, {9, 8}, {0, 1}}, {{0, 10}, {5, 6}, {1, 4}}}});
  CHECK(epochs_on_ranks(2, 11, shuffled, {.dispatch_batches = true}, 2) ==
        std::vector<std::vector<Epoch>>{{{{3, 0}, {5, 8}, {1, 7}}, {{9, 1}, {2, 4}, {8, 6}}},
                                        {{{9, 2}, {4, 10}, {6, 3}}, {{7, 10}, {0, 3}, {5, 9}}}});
  CHECK(epochs_on_ranks(2, 11, shuffled, {.dispatch_batches = true, .use_seedable_sampler = true}, 2) ==
        std::vector<std::vector<Epoch>>{{{{3, 0}, {5, 8}, {1, 7}}, {{10, 9}, {0, 1}, {6, 8}}},
                                        {{{9, 2}, {4, 10}, {6, 3}}, {{2, 4}, {7, 3}, {5, 10}}}});
  for (const bool dispatch : {false, true}) {
    const auto skipped = epochs_on_ranks(2, 13, {.batch_size = 2}, {.dispatch_batches = dispatch}, 1, 2);
    CHECK(skipped[0][0].front() == Batch{8, 9});
    CHECK(skipped[1][0].front() == Batch{10, 11});
    if (!dispatch) CHECK(skipped == std::vector<std::vector<Epoch>>{{{{8, 9}, {12, 0}}}, {{{10, 11}, {1, 2}}}});
  }
}

TEST_CASE("without a seed of its own a loader shuffles by the master seed, alike on all ranks") {
  for (const bool dispatch : {false, true}) {
    const auto ranks = epochs_on_ranks(3, 12, {.batch_size = 2, .shuffle = true}, {.dispatch_batches = dispatch}, 1);
    std::vector<std::int64_t> all;
    for (const auto& rank : ranks)
      for (const auto& batch : rank[0]) all.insert(all.end(), batch.begin(), batch.end());
    std::sort(all.begin(), all.end());
    CHECK(all == Batch{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    CHECK(epochs_on_ranks(3, 12, {.batch_size = 2, .shuffle = true}, {.dispatch_batches = dispatch}, 1) == ranks);
  }
}

TEST_CASE("a seedable sampler gives the same epoch whether it is counted or set") {
  const auto epochs =
      on_ranks<std::vector<Epoch>>(2, {.data_loader = {.use_seedable_sampler = true}}, [](Accelerator& accelerator) {
        auto loader = accelerator.prepare(data::DataLoader(Indices(10), {.batch_size = 2, .shuffle = true, .seed = 3}));
        std::vector<Epoch> seen{one_epoch(loader), one_epoch(loader), one_epoch(loader)};
        loader.set_epoch(1);
        seen.push_back(one_epoch(loader));
        return seen;
      });
  CHECK(epochs[0][3] == epochs[0][1]);
  CHECK(epochs[0][0] != epochs[0][1]);
  CHECK(epochs[1][3] == epochs[1][1]);
}

TEST_CASE("the epoch counter advances at the end of an epoch, not when it is left early") {
  for (const bool dispatch : {false, true}) {
    const auto counts = on_ranks<std::vector<std::int64_t>>(
        2, {.data_loader = {.dispatch_batches = dispatch}}, [](Accelerator& accelerator) {
          auto loader = accelerator.prepare(data::DataLoader(Indices(20), {.batch_size = 2}));
          std::vector<std::int64_t> seen{loader.epoch()};
          for (auto& batch : loader) {
            (void)batch;
            break;
          }
          seen.push_back(loader.epoch());
          one_epoch(loader);
          seen.push_back(loader.epoch());
          one_epoch(loader.skip_first_batches(3));
          seen.push_back(loader.epoch());
          return seen;
        });
    CHECK(counts[0] == std::vector<std::int64_t>{0, 0, 1, 2});
    CHECK(counts[1] == counts[0]);
  }
}

TEST_CASE("gather_for_metrics gives every sample of the dataset exactly once, in order") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const bool dispatch = GENERATE(false, true);
  const int length = GENERATE(1, 2, 5, 16, 29);
  CAPTURE(ranks, dispatch, length);
  const auto gathered =
      on_ranks<Batch>(ranks, {.data_loader = {.dispatch_batches = dispatch}}, [&](Accelerator& accelerator) {
        auto loader =
            accelerator.prepare(data::DataLoader(Indices(static_cast<std::size_t>(length)), {.batch_size = 3}));
        Batch all;
        for (auto& batch : loader) {
          const Batch part = list(accelerator.gather_for_metrics(batch));
          all.insert(all.end(), part.begin(), part.end());
        }
        return all;
      });
  Batch expected;
  for (int i = 0; i < length; ++i) expected.push_back(i);
  for (const auto& rank : gathered) CHECK(rank == expected);
}

TEST_CASE("end_of_dataloader turns true just before the last step is handed out") {
  const auto ends = on_ranks<std::vector<int>>(2, [](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Indices(12), {.batch_size = 2}));
    std::vector<int> seen;
    for (auto& batch : loader) {
      (void)batch;
      seen.push_back(loader.end_of_dataloader());
      seen.push_back(accelerator.gradient_state().end_of_dataloader());
    }
    seen.push_back(accelerator.gradient_state().end_of_dataloader());
    return seen;
  });
  CHECK(ends[0] == std::vector<int>{0, 0, 0, 0, 1, 1, 0});
}

TEST_CASE("the innermost of nested loaders decides, and the outer one again afterwards") {
  const auto ends = on_ranks<std::vector<int>>(1, [](Accelerator& accelerator) {
    auto outer = accelerator.prepare(data::DataLoader(Indices(2), {.batch_size = 1}));
    auto inner = accelerator.prepare(data::DataLoader(Indices(1), {.batch_size = 1}));
    std::vector<int> seen;
    for (auto& batch : outer) {
      (void)batch;
      for (auto& other : inner) {
        (void)other;
        seen.push_back(accelerator.gradient_state().end_of_dataloader());
      }
      seen.push_back(accelerator.gradient_state().end_of_dataloader());
    }
    return seen;
  });
  CHECK(ends[0] == std::vector<int>{1, 0, 1, 1});
}

TEST_CASE("in dispatch mode only rank 0 reads") {
  const auto reads = on_ranks<int>(3, {.data_loader = {.dispatch_batches = true}}, [](Accelerator& accelerator) {
    Indices dataset(30);
    auto loader = accelerator.prepare(data::DataLoader(dataset, {.batch_size = 2}));
    one_epoch(loader);
    return dataset.reads->load();
  });
  CHECK(reads[0] > 0);
  CHECK(reads[1] == 0);
  CHECK(reads[2] == 0);
}

TEST_CASE("all ranks may leave a dispatching epoch at the same step and begin another") {
  const auto epochs = on_ranks<Epoch>(3, {.data_loader = {.dispatch_batches = true}}, [](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Indices(30), {.batch_size = 2}));
    Epoch seen;
    for (int epoch = 0; epoch < 20; ++epoch)
      for (auto& batch : loader) {
        seen.push_back(list(batch));
        if (static_cast<int>(seen.size()) % 3 == epoch % 3) break;
      }
    return seen;
  });
  CHECK(epochs[0].size() == epochs[2].size());
  CHECK(epochs[1].front() == Batch{2, 3});
}

TEST_CASE("LibTorch's own datasets and transforms work, stacked or not") {
  const auto sums = on_ranks<double>(2, [](Accelerator& accelerator) {
    auto plain = torch::data::datasets::TensorDataset(at::arange(8, at::kFloat));
    auto stacked = plain.map(torch::data::transforms::Stack<torch::data::TensorExample>());
    auto first = accelerator.prepare(data::DataLoader(plain, {.batch_size = 2}));
    auto second = accelerator.prepare(data::DataLoader(std::move(stacked), {.batch_size = 2}));
    double sum = 0;
    for (auto& batch : first) sum += batch.data.sum().item<double>();
    for (auto& batch : second) sum += batch.data.sum().item<double>();
    return sum;
  });
  CHECK(sums[0] + sums[1] == 2 * 28);
}

TEST_CASE("empty data is an empty epoch, unless it is to be shuffled") {
  for (const bool dispatch : {false, true}) {
    CHECK(epochs_on_ranks(2, 0, {.batch_size = 2}, {.dispatch_batches = dispatch}, 1) ==
          std::vector<std::vector<Epoch>>{{{}}, {{}}});
    const auto error =
        run_ranks_expecting_error(2, {.data_loader = {.dispatch_batches = dispatch}}, [](Accelerator& accelerator) {
          auto loader = accelerator.prepare(data::DataLoader(Indices(0), {.batch_size = 2, .shuffle = true}));
          one_epoch(loader);
        });
    CHECK_THROWS_AS(error.rethrow_cause(), DataError);
  }
}

TEST_CASE("loaders that differ between ranks are an error that says how") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    accelerator.prepare(data::DataLoader(Indices(accelerator.is_main() ? 10 : 12), {.batch_size = 2}));
  });
  CHECK_THAT(error.what(), ContainsSubstring("length 12") && ContainsSubstring("length 10"));
}

TEST_CASE("samples of different shapes are an error that names them") {
  struct Ragged : torch::data::datasets::Dataset<Ragged, at::Tensor> {
    at::Tensor get(std::size_t index) override { return at::ones({static_cast<std::int64_t>(index) + 1}); }
    std::optional<std::size_t> size() const override { return 4; }
  };
  const auto error = run_ranks_expecting_error(1, [](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Ragged(), {.batch_size = 2}));
    for (auto& batch : loader) (void)batch;
  });
  CHECK_THAT(error.what(), ContainsSubstring("[1]") && ContainsSubstring("[2]"));
}

TEST_CASE("ranks that begin different epochs of a loader are an error that names both") {
  const bool dispatch = GENERATE(false, true);
  const auto error =
      run_ranks_expecting_error(2, {.data_loader = {.dispatch_batches = dispatch}}, [](Accelerator& accelerator) {
        auto loader = accelerator.prepare(data::DataLoader(Indices(8), {.batch_size = 2, .shuffle = true}));
        if (accelerator.rank() == 1) loader.set_epoch(5);
        for (auto& batch : loader) accelerator.reduce(static_cast<double>(list(batch).size()));
      });
  CHECK_THAT(error.what(), ContainsSubstring("different epochs of a data loader") && ContainsSubstring("5") &&
                               ContainsSubstring("call set_epoch alike"));
}
