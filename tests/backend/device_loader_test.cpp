// Loaders whose batches go to a (fake) GPU, beside the same on CPU ranks.
#include <atomic>

#include <torch/data/datasets/base.h>
#include <torch/data/example.h>
#include <torch/nn/modules/linear.h>

#include "backend/cuda/gpu_backend.h"
#include "support/fake_module.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr std::int64_t kSamples = 46;  // neither divided by the batch size nor by the ranks

// Counts what it reads, and fails at a sample.
struct Numbers : torch::data::datasets::Dataset<Numbers> {
  std::shared_ptr<std::atomic<int>> reads = std::make_shared<std::atomic<int>>(0);
  std::int64_t bad = -1;

  torch::data::Example<> get(std::size_t index) override {
    *reads += 1;
    if (static_cast<std::int64_t>(index) == bad) throw std::runtime_error("sample on fire");
    const auto value = static_cast<double>(index);
    return {at::full({3, 5}, value), at::full({}, static_cast<std::int64_t>(index), at::kLong)};
  }
  std::optional<std::size_t> size() const override { return kSamples; }
};

using Stream = data::IterableDataset<at::Tensor>;

Stream stream() {
  return Stream([](std::int64_t) {
    return [next = std::int64_t{0}]() mutable -> std::optional<at::Tensor> {
      if (next == kSamples) return std::nullopt;
      return at::full({2}, next++, at::kLong);
    };
  });
}

LaunchConfig on_gpus(int ranks) {
  LaunchConfig config{.backend = cuda::make_gpu_backend(std::make_shared<FakeModule>())};
  for (int rank = 0; rank < ranks; ++rank) config.devices.push_back(rank);
  return config;
}

struct Mode {
  bool dispatch = false, split = false, even = true, non_blocking = true;
  int workers = 0;
};

Mode mode() {
  return GENERATE(values<Mode>({{},
                                {.workers = 2},
                                {.even = false},
                                {.dispatch = true},
                                {.dispatch = true, .workers = 2},
                                {.dispatch = true, .split = true},
                                {.non_blocking = false}}));
}

LaunchConfig with(const Mode& mode, LaunchConfig config) {
  config.data_loader = {.split_batches = mode.split,
                        .dispatch_batches = mode.dispatch,
                        .even_batches = mode.even,
                        .non_blocking = mode.non_blocking};
  return config;
}

// What a rank sees of a step.
struct Seen {
  std::vector<at::Tensor> tensors;
  bool last, synchronises;
  std::int64_t remainder;
  data::LoaderState state;

  bool operator==(const Seen& other) const {
    const auto equal = [](const at::Tensor& a, const at::Tensor& b) { return at::equal(a, b); };
    return std::equal(tensors.begin(), tensors.end(), other.tensors.begin(), other.tensors.end(), equal) &&
           last == other.last && synchronises == other.synchronises && remainder == other.remainder &&
           state.step == other.state.step && state.epoch == other.state.epoch;
  }
};

using History = std::vector<std::vector<Seen>>;  // by rank

template <class Loader>
void look(Accelerator& a, torch::nn::Linear& model, Loader& loader, std::vector<Seen>& seen, int most = 1000) {
  for (auto& batch : loader) {
    const auto scope = a.accumulate(model);
    Seen step{{}, loader.end_of_dataloader(), a.sync_gradients(), loader.remainder(), loader.state_dict()};
    data::for_each_tensor(batch, [&](at::Tensor& tensor) {
      if (tensor.device() != a.device()) throw std::logic_error("on another device");
      step.tensors.push_back(tensor.to(at::kCPU, tensor.scalar_type(), false, true));
      tensor.add_(1);  // the memory is the rank's to write to
    });
    seen.push_back(std::move(step));
    if (--most == 0) break;
  }
}

template <class Dataset>
History history_of(LaunchConfig config, const Mode& mode, Dataset dataset, int epochs = 2) {
  History history(config.cpu ? static_cast<std::size_t>(*config.cpu) : config.devices.size());
  config.gradient_accumulation_steps = 3;
  launch(with(mode, config), [&](Accelerator& a) {
    torch::nn::Linear model(2, 2);
    auto loader = a.prepare(data::DataLoader(
        dataset, {.batch_size = 4, .shuffle = !std::is_same_v<Dataset, Stream>, .workers = mode.workers}));
    for (int epoch = 0; epoch < epochs; ++epoch) look(a, model, loader, history[static_cast<std::size_t>(a.rank())]);
  });
  return history;
}

void check_clean() {
  CHECK(fake::races() == std::vector<std::string>{});
  CHECK(fake::allocated() == 0);
}

}  // namespace

TEST_CASE("batches on GPUs, and what loaders say of them, are those on CPU ranks") {
  const Mode how = mode();
  const int ranks = GENERATE(1, 2, 4);
  CAPTURE(how.dispatch, how.split, how.even, how.non_blocking, how.workers, ranks);
  fake::install();
  fake::reset();
  CHECK((history_of(on_gpus(ranks), how, Numbers()) == history_of({.cpu = ranks}, how, Numbers())));
  check_clean();
}

TEST_CASE("batches of a stream reach GPUs as they reach CPU ranks") {
  const int ranks = GENERATE(1, 3);
  const bool dispatch = GENERATE(false, true);
  CAPTURE(ranks, dispatch);
  fake::install();
  fake::reset();
  const Mode how{.dispatch = dispatch};
  CHECK((history_of(on_gpus(ranks), how, stream()) == history_of({.cpu = ranks}, how, stream())));
  check_clean();
}

TEST_CASE("an epoch on GPUs may be left at any step, begun again, and gone on with elsewhere") {
  const Mode how = GENERATE(values<Mode>({{}, {.workers = 2}, {.dispatch = true}, {.dispatch = true, .workers = 2}}));
  const int left_after = GENERATE(1, 2, 5, 6);
  CAPTURE(how.dispatch, how.workers, left_after);
  fake::install();
  fake::reset();
  const auto run = [&](const LaunchConfig& config) {
    History history(2);
    launch(with(how, config), [&](Accelerator& a) {
      auto& seen = history[static_cast<std::size_t>(a.rank())];
      torch::nn::Linear model(2, 2);
      const data::DataLoader source(Numbers(), {.batch_size = 4, .shuffle = true, .workers = how.workers});
      auto loader = a.prepare(source);
      look(a, model, loader, seen, left_after);
      const auto state = a.broadcast_object(seen.back().state);
      look(a, model, loader, seen);
      auto other = a.prepare(source);
      other.load_state_dict(state);
      look(a, model, other, seen);
      auto skipping = other.skip_first_batches(2);
      look(a, model, skipping, seen, 1);
    });
    return history;
  };
  CHECK((run(on_gpus(2)) == run({.cpu = 2})));
  check_clean();
}

TEST_CASE("what reading a sample throws comes out at its batch, not at the one before") {
  const bool dispatch = GENERATE(false, true);
  const int workers = GENERATE(0, 2);
  CAPTURE(dispatch, workers);
  fake::install();
  fake::reset();
  std::array<int, 2> steps{};
  LaunchConfig config = with({.dispatch = dispatch}, on_gpus(2));
  try {
    launch(config, [&](Accelerator& a) {
      Numbers numbers;
      numbers.bad = 25;  // in step 3, rank 0's (samples 24 to 27)
      auto loader = a.prepare(data::DataLoader(numbers, {.batch_size = 4, .workers = workers}));
      for ([[maybe_unused]] auto& batch : loader) {
        steps[static_cast<std::size_t>(a.rank())] += 1;
        a.wait_for_everyone();
      }
    });
    FAIL("the launch should have failed");
  } catch (const RankError& error) {
    CHECK(error.rank() == 0);
    CHECK_THAT(error.what(), ContainsSubstring("sample on fire"));
  }
  CHECK(steps[0] == 3);
  check_clean();
}

TEST_CASE("the next batch is read and on its way when a batch is handed out") {
  fake::install();
  fake::reset();
  const bool ahead = GENERATE(true, false);
  Numbers numbers;
  std::vector<int> reads;
  int pageable = 0;
  launch(with({.non_blocking = ahead}, on_gpus(1)), [&](Accelerator& a) {
    pageable = fake::pageable_copies();
    auto loader = a.prepare(data::DataLoader(numbers, {.batch_size = 20}));
    for ([[maybe_unused]] auto& batch : loader) reads.push_back(*numbers.reads);
    pageable = fake::pageable_copies() - pageable;
  });
  CHECK((pageable == 0) == ahead);
  CHECK(reads == (ahead ? std::vector<int>{40, 46, 46} : std::vector<int>{20, 40, 46}));
  check_clean();
}
