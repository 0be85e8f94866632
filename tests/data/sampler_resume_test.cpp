// Samplers of a program's own: their orders are the same always and everywhere, also after resuming.
#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <random>

#include "data/loader_base.h"
#include "support/index_data.h"
#include "support/samplers.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr std::int64_t kSamples = 24, kGlobalBatch = 8;

// How many steps each of the epochs that are begun is used for: some are left early.
constexpr std::array<std::int64_t, 6> kSteps{3, 1, 1, 3, 2, 3};

// A place in these: after `step` steps of the `begun`-th epoch; after all of kSteps: before the next one.
struct Place {
  std::size_t begun;
  std::int64_t step;
  data::LoaderState state;
};

struct Run {
  std::vector<Batch> batches;  // of all ranks together
  std::vector<Place> places;
};

struct LoaderMode {
  int ranks = 1;
  bool dispatch = false;
  int workers = 0;
};

data::DataLoaderOptions options_of(const SamplerKind& kind, const LoaderMode& mode) {
  data::DataLoaderOptions options = kind.options(kSamples);
  if (!kind.batches) options.batch_size = kGlobalBatch / mode.ranks;
  options.workers = mode.workers;
  return options;
}

// Batches of a batch sampler are of two samples, whatever the ranks: with four ranks they make a step of eight.
std::vector<LoaderMode> modes_of(const SamplerKind& kind) {
  if (kind.batches) return {{4, false, 0}, {4, false, 2}, {4, true, 1}};
  return {{1, false, 0}, {2, false, 0}, {4, false, 2}, {1, true, 0}, {2, true, 2}, {4, true, 0}};
}

template <class Loader>
void use(Accelerator& accelerator, const Loader& loader, std::size_t begun, Run& run) {
  for (; begun < kSteps.size(); ++begun) {
    std::int64_t step = 0;
    for (auto& batch : loader) {
      run.batches.push_back(list(accelerator.gather(batch)));
      step = loader_of(loader).status().step + 1;
      if (step == kSteps[begun] && step < 3) break;
      run.places.push_back({begun, step, loader.state_dict()});
    }
    run.places.push_back({begun + 1, 0, loader.state_dict()});
  }
}

Run run_of(const SamplerKind& kind, const LoaderMode& mode, const std::optional<Place>& from = {}) {
  const auto runs =
      on_ranks<Run>(mode.ranks, {.data_loader = {.dispatch_batches = mode.dispatch}}, [&](Accelerator& accelerator) {
        auto loader =
            accelerator.prepare(data::DataLoader(Indices(static_cast<std::size_t>(kSamples)), options_of(kind, mode)));
        Run run;
        if (from) loader.load_state_dict(from->state);
        run.places.push_back({from ? from->begun : 0, 0, loader.state_dict()});
        use(accelerator, loader, from ? from->begun : 0, run);
        return run;
      });
  return runs[0];
}

// The batches of a run that are left at a place of it.
std::vector<Batch> rest(const Run& run, const Place& place) {
  std::int64_t before = place.step;
  for (std::size_t i = 0; i < place.begun; ++i) before += kSteps[i];
  return {run.batches.begin() + before, run.batches.end()};
}

}  // namespace

TEST_CASE("the order of every kind of sampler is the same in each run, mode and number of ranks") {
  for (const SamplerKind& kind : sampler_kinds()) {
    const auto modes = modes_of(kind);
    const Run expected = run_of(kind, modes[0]);
    CHECK(expected.batches.size() == 13);
    for (const LoaderMode& mode : modes) {
      INFO(kind.name << " on " << mode.ranks << " ranks, dispatch " << mode.dispatch << ", workers " << mode.workers);
      CHECK(run_of(kind, mode).batches == expected.batches);
    }
  }
}

TEST_CASE("every kind of sampler goes on from every place with the same bits, also on another number of ranks") {
  for (const SamplerKind& kind : sampler_kinds()) {
    const auto modes = modes_of(kind);
    std::size_t next = 0;
    for (const bool dispatch : {false, true}) {
      const Run whole = run_of(kind, {kind.batches ? 4 : 2, dispatch, 0});
      for (const Place& place : whole.places) {
        const LoaderMode& mode = modes[next++ % modes.size()];
        INFO(kind.name << " from epoch " << place.begun << " step " << place.step << " on " << mode.ranks
                       << " ranks, dispatch " << mode.dispatch << ", workers " << mode.workers);
        const Run resumed = run_of(kind, mode, place);
        CHECK(resumed.batches == rest(whole, place));
        // And once more from there.
        const Place& again = resumed.places[resumed.places.size() / 2];
        CHECK(run_of(kind, mode, again).batches == rest(whole, again));
      }
    }
  }
}

TEST_CASE("a state of a version that knew less goes on as if all epochs before had been used to their end") {
  for (const SamplerKind& kind : sampler_kinds()) {
    INFO(kind.name);
    const auto epochs = [&](const std::optional<data::LoaderState>& from) {
      return on_ranks<std::vector<Batch>>(4, [&](Accelerator& accelerator) {
        auto loader = accelerator.prepare(
            data::DataLoader(Indices(static_cast<std::size_t>(kSamples)), options_of(kind, {.ranks = 4})));
        if (from) loader.load_state_dict(*from);
        std::vector<Batch> batches;
        while (loader.epoch() < 4)
          for (auto& batch : loader) batches.push_back(list(accelerator.gather(batch)));
        return batches;
      })[0];
    };
    if (kind.name == "engine told" || kind.name == "batches, engine told") continue;  // had its state
    const auto whole = epochs({});
    for (const auto& [epoch, step] : {std::pair{0, 0}, {0, 2}, {1, 0}, {2, 1}, {3, 0}}) {
      const data::LoaderState state{epoch, step, kind.batches ? 0 : kGlobalBatch, {}, {}};
      CHECK(epochs(state) == std::vector<Batch>(whole.begin() + 3 * epoch + step, whole.end()));
    }
  }
}

TEST_CASE("a loader that is in use goes back where its sampler can, and says what is missing where it cannot") {
  struct Back {
    std::string kind;
    bool works;
  };
  for (const auto& [name, works] : {Back{"LibTorch's random", true},
                                    {"torch::data, default generator", true},
                                    {"torch::data, engine", false},
                                    {"torch::data, engine saved", true},
                                    {"torch::data, order saved without the engine", false},
                                    {"default generator", true},
                                    {"engine", false},
                                    {"engine told", true},
                                    {"batches, engine", false},
                                    {"batches, engine told", true}}) {
    INFO(name);
    const auto kinds = sampler_kinds();
    const auto kind = *std::find_if(kinds.begin(), kinds.end(), [&](const auto& one) { return one.name == name; });
    const auto go_back = [&, &works = works] {
      run_ranks(4, [&](Accelerator& accelerator) {
        auto loader = accelerator.prepare(
            data::DataLoader(Indices(static_cast<std::size_t>(kSamples)), options_of(kind, {.ranks = 4})));
        Run whole, again;
        use(accelerator, loader, 0, whole);
        for (const Place& place : {whole.places[1], whole.places[5], whole.places[whole.places.size() - 2]}) {
          loader.load_state_dict(place.state);
          use(accelerator, loader, place.begun, again);
          if (again.batches != rest(whole, place)) throw std::logic_error("other samples than before");
          again = {};
        }
      });
    };
    if (works) {
      CHECK_NOTHROW(go_back());
      continue;
    }
    try {
      go_back();
      FAIL_CHECK("it went back");
    } catch (const RankError& error) {
      CHECK_THROWS_AS(error.rethrow_cause(), DataError);
      CHECK_THAT(error.what(), ContainsSubstring("gave another order") && ContainsSubstring("save() and load()"));
    }
  }
}

TEST_CASE("a sampler that cannot give its order again is an error on every rank, not another order") {
  struct Unpredictable final : data::Sampler {
    std::mt19937 engine{std::random_device()()};
    data::EpochOrder begin(std::int64_t length, std::int64_t, bool) override { return shuffled(length, engine); }
  };
  const auto own = own_kind<Unpredictable>("unpredictable");
  for (const bool in_the_middle : {false, true})
    for (const bool dispatch : {false, true}) {
      const Run whole = run_of(own, {2, dispatch, 0});
      const Place& place = whole.places[in_the_middle ? 1 : 4];
      std::atomic<int> refused{0};
      run_ranks(2, {.data_loader = {.dispatch_batches = dispatch}}, [&](Accelerator& accelerator) {
        auto loader = accelerator.prepare(
            data::DataLoader(Indices(static_cast<std::size_t>(kSamples)), options_of(own, {.ranks = 2})));
        loader.load_state_dict(place.state);
        if (dispatch && !accelerator.is_main()) return;
        try {
          one_epoch(loader);
        } catch (const DataError& error) {
          refused += std::string(error.what()).find("Unpredictable") != std::string::npos;
        }
      });
      CHECK(refused == (dispatch ? 1 : 2));
    }
  // One that saves its engine can, wherever it was seeded from.
  const SamplerKind saved{
      "saved", [](std::int64_t size) {
        auto sampler = std::make_shared<SavedTorchSampler>(static_cast<std::size_t>(size), std::random_device()());
        return data::DataLoaderOptions{.sampler = std::make_shared<data::TorchSampler>(sampler, size)};
      }};
  const Run whole = run_of(saved, {2, false, 0});
  for (const Place& place : whole.places) CHECK(run_of(saved, {4, true, 1}, place).batches == rest(whole, place));
}

TEST_CASE("what a sampler, a collation and the beginning of an epoch draw leaves the ranks' generators alone") {
  struct Reshuffled : Indices {
    using Indices::Indices;
    at::Tensor order;
    void set_epoch(std::int64_t) { order = torch::randperm(static_cast<std::int64_t>(length)); }
    at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
      return order.index_select(0, Indices::get_batch(indices)).clone();
    }
  };
  const auto draw = [](bool with_loader, int workers, bool dispatch) {
    return on_ranks<std::vector<at::Tensor>>(
        3, {.data_loader = {.dispatch_batches = dispatch}}, [&](Accelerator& accelerator) {
          auto loader = accelerator.prepare(data::DataLoader(
              Reshuffled(24), {.batch_size = 2, .sampler = std::make_shared<DefaultSampler>(), .workers = workers}));
          const auto noise = [](std::vector<std::int64_t> samples) {
            return at::tensor(samples, at::kDouble) + torch::rand({2}, at::kDouble);
          };
          auto collated = accelerator.prepare(data::DataLoader(counting(24), {.batch_size = 2}).with_collate(noise));
          std::vector<at::Tensor> own, gathered;
          for (int step = 0; step < 8; ++step) own.push_back(at::rand({2}));
          own.clear();
          for (int step = 0; step < 8 && !with_loader; ++step) own.push_back(at::rand({2}));
          if (!with_loader) return own;
          for (int epoch = 0; epoch < 2; ++epoch) {
            for (auto& batch : loader) {
              own.push_back(at::rand({2}));
              gathered.push_back(accelerator.gather(batch));
            }
            for (auto& batch : collated) gathered.push_back(accelerator.gather(batch));
          }
          own.push_back(at::cat(gathered));
          return own;
        });
  };
  const auto alone = draw(false, 0, false);
  const at::Tensor expected = draw(true, 0, false)[0].back();
  for (const int workers : {0, 2})
    for (const bool dispatch : {false, true}) {
      const auto beside = draw(true, workers, dispatch);
      for (std::size_t rank = 0; rank < 3; ++rank) {
        for (std::size_t step = 0; step < 8; ++step) CHECK(at::equal(beside[rank][step], alone[rank][step]));
        CHECK(at::equal(beside[rank].back(), expected));
      }
    }
}

TEST_CASE("samplers that give too much, too little or nothing to sample from are errors that say so") {
  struct Endless final : OwnTorchSampler {
    using OwnTorchSampler::OwnTorchSampler;
    std::optional<std::vector<std::size_t>> next(std::size_t) override { return std::vector<std::size_t>{0, 1}; }
    void shuffle(std::vector<std::size_t>&) override {}
  };
  struct Short final : data::Sampler {
    data::EpochOrder begin(std::int64_t length, std::int64_t, bool) override {
      return data::EpochOrder(at::arange(length - 1, at::kLong));
    }
  };
  const auto text_of = [](const std::shared_ptr<data::Sampler>& sampler) {
    return std::string(run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
                         one_epoch(accelerator.prepare(data::DataLoader(Indices(10), {.sampler = sampler})));
                       }).what());
  };
  CHECK_THAT(text_of(std::make_shared<data::TorchSampler>(std::make_shared<Endless>(10), 10)),
             ContainsSubstring("10 were expected"));
  CHECK_THAT(text_of(std::make_shared<Short>()), ContainsSubstring("order of 9 samples, 10 were expected"));
  CHECK_THROWS_AS(data::TorchSampler(std::shared_ptr<Endless>(), 10), ConfigError);
  // A strided order is taken as it reads.
  struct EveryOther final : data::Sampler {
    data::EpochOrder begin(std::int64_t length, std::int64_t, bool) override {
      return data::EpochOrder(at::arange(2 * length, at::kLong).slice(0, 0, 2 * length, 2));
    }
  };
  CHECK(
      epochs_on_ranks(1, data::DataLoader(Indices(6), {.batch_size = 3, .sampler = std::make_shared<EveryOther>()})) ==
      std::vector<std::vector<Epoch>>{{{{0, 2, 4}, {6, 8, 10}}}});
}

TEST_CASE("the parts of a BatchSamplerShard are of the same batches on all ranks, also when these are drawn") {
  const auto parts = on_ranks<Epoch>(3, [](Accelerator& accelerator) {
    data::BatchSamplerShard mine(std::make_shared<BatchesOf<DefaultSampler>>(12), 3, accelerator.rank());
    Epoch all = mine.batches(0);
    for (const Batch& batch : mine.batches(1)) all.push_back(batch);
    return all;
  });
  for (const std::size_t epoch : {0, 1}) {
    Batch seen;
    for (const Epoch& part : parts)
      for (std::size_t i = 0; i < 2; ++i)
        seen.insert(seen.end(), part[2 * epoch + i].begin(), part[2 * epoch + i].end());
    std::sort(seen.begin(), seen.end());
    CHECK(seen == Batch{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  }
  CHECK(parts[0][0] != parts[0][2]);
}
