// Loops over one loader within, beside and after each other.
#include <optional>

#include "support/index_data.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Loader = data::PreparedDataLoader<at::Tensor>;

struct Mode {
  int ranks = 1;
  bool dispatch = false;
  int workers = 0;
  bool iterable = false;
};

Mode mode() {
  const int ranks = GENERATE(1, 2);
  const bool dispatch = GENERATE(false, true);
  const int workers = GENERATE(0, 2);
  const bool iterable = GENERATE(false, true);
  return {ranks, dispatch, workers, iterable};
}

// Twelve samples, in steps of four of all ranks.
template <class Body>
void run(const Mode& how, const Body& body) {
  run_ranks(how.ranks, {.data_loader = {.dispatch_batches = how.dispatch}}, [&](Accelerator& accelerator) {
    const data::DataLoaderOptions options{.batch_size = 4 / how.ranks, .workers = how.workers};
    Loader loader = how.iterable ? accelerator.prepare(data::DataLoader(counting(12), options))
                                 : accelerator.prepare(data::DataLoader(Indices(12), options));
    body(accelerator, loader);
  });
}

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error(what);
}

}  // namespace

TEST_CASE("a loop within a loop over the same loader is an error that names the loader") {
  const Mode how = mode();
  const int skipped = GENERATE(0, 1);
  CAPTURE(how.ranks, how.dispatch, how.workers, how.iterable, skipped);
  std::string text;
  std::atomic<int> inner_steps{0}, outer_steps{0};
  try {
    run(how, [&](Accelerator& accelerator, Loader& loader) {
      for (auto& outer : loader) {
        (void)outer;
        outer_steps += 1;
        const Loader within = skipped > 0 ? loader.skip_first_batches(skipped) : loader;
        for (auto& inner : within) {
          (void)inner;
          inner_steps += 1;
        }
        accelerator.wait_for_everyone();
      }
    });
  } catch (const RankError& error) {
    text = error.what();
    CHECK_THROWS_AS(error.rethrow_cause(), DataError);
  }
  CHECK(outer_steps == how.ranks);
  CHECK(inner_steps == (3 - skipped) * how.ranks);
  CHECK_THAT(text, ContainsSubstring("a loop over the data loader of") && ContainsSubstring("another loop over it"));
  CHECK_THAT(text, ContainsSubstring(how.iterable ? "IterableDataset" : "12 samples of tandem::test::Indices"));
}

TEST_CASE("loops that were left by break, exception or return, or end with the inner one, are no loops any more") {
  const Mode how = mode();
  CAPTURE(how.ranks, how.dispatch, how.workers, how.iterable);
  CHECK_NOTHROW(run(how, [&](Accelerator& accelerator, Loader& loader) {
    for (auto& batch : loader) {
      (void)batch;
      break;
    }
    try {
      for (auto& batch : loader) throw std::runtime_error(std::to_string(batch.numel()));
    } catch (const std::runtime_error&) {
    }
    const auto first = [&] {
      for (auto& batch : loader) return batch.clone();
      return at::Tensor();
    };
    expect(first().defined(), "no batch");
    expect(loader.epoch() == 0, "an epoch that was left was counted");
    for (auto& outer : loader) {  // the inner one takes over, and the outer is left
      (void)outer;
      for (auto& inner : loader) (void)inner;
      break;
    }
    expect(loader.epoch() == 1, "the inner loop was an epoch");
    for (int epoch = 0; epoch < 2; ++epoch) expect(one_epoch(loader).size() == 3, "an epoch is cut short");
    expect(loader.epoch() == 3, "epochs are not counted");
    accelerator.wait_for_everyone();
  }));
}

TEST_CASE("an iterator that is kept does not end the epochs that come after its own") {
  const Mode how = mode();
  CAPTURE(how.ranks, how.dispatch, how.workers, how.iterable);
  CHECK_NOTHROW(run(how, [&](Accelerator&, Loader& loader) {
    {
      const auto peek = loader.begin();  // to see what batches look like
      expect(one_epoch(loader).size() == 3, "an epoch beside an iterator is cut short");
    }
    // A loop without end, as trainings by steps write it.
    std::optional<Loader::Iterator> batches;
    std::vector<std::int64_t> firsts;
    for (int step = 0; step < 8; ++step) {
      if (!batches || *batches == loader.end()) batches.emplace(loader.begin());
      firsts.push_back((**batches)[0].item<std::int64_t>() / 4);
      ++*batches;
    }
    expect(firsts == std::vector<std::int64_t>{0, 1, 2, 0, 1, 2, 0, 1}, "the second epoch was ended");
    expect(loader.epoch() == 3, "epochs are not counted");
    batches.reset();
    auto ended = loader.begin();
    for (int step = 0; step < 5; ++step) ++ended;  // at the end nothing more happens
    expect(ended == loader.end() && loader.epoch() == 4, "the end was counted twice");
  }));
}

TEST_CASE("two iterators that take turns are an error at the first one's next step") {
  const Mode how = mode();
  CAPTURE(how.ranks, how.dispatch, how.workers, how.iterable);
  CHECK_NOTHROW(run(how, [&](Accelerator& accelerator, Loader& loader) {
    auto first = loader.begin();
    auto second = loader.begin();
    bool refused = false;
    try {
      ++first;
    } catch (const DataError&) {
      refused = true;
    }
    expect(refused, "the first went on");
    expect((*first).numel() == 4 / accelerator.world_size(), "its batch is gone");
    int steps = 1;
    while (++second != loader.end()) steps += 1;
    expect(steps == 3, "the second was disturbed");
  }));
}

TEST_CASE("two prepared loaders of one DataLoader are independent of each other") {
  const Mode how = mode();
  CAPTURE(how.ranks, how.dispatch, how.workers);
  if (how.iterable) return;
  int pairs = 0;
  run_ranks(how.ranks, {.data_loader = {.dispatch_batches = how.dispatch}}, [&](Accelerator& accelerator) {
    const data::DataLoader both(Indices(12), {.batch_size = 4 / how.ranks, .workers = how.workers});
    auto outer = accelerator.prepare(both), inner = accelerator.prepare(both);
    for (auto& a : outer)
      for (auto& b : inner)
        if (accelerator.is_main()) pairs += a.defined() && b.defined();
  });
  CHECK(pairs == 9);
}

TEST_CASE("a state that is loaded within a loop ends the loop, and the next one goes on from there") {
  const Mode how = mode();
  CAPTURE(how.ranks, how.dispatch, how.workers, how.iterable);
  CHECK_NOTHROW(run(how, [&](Accelerator& accelerator, Loader& loader) {
    std::vector<std::int64_t> firsts;
    std::optional<data::LoaderState> state;
    bool loaded = false;
    while (loader.epoch() < 2)
      for (auto& batch : loader) {
        firsts.push_back(accelerator.gather(batch)[0].item<std::int64_t>() / 4);
        if (firsts.size() == 2) state = accelerator.broadcast_object(loader.state_dict());
        if (firsts.size() == 5 && !loaded) {
          loader.load_state_dict(*state);
          loaded = true;
        }
      }
    expect(firsts == std::vector<std::int64_t>{0, 1, 2, 0, 1, 2, 0, 1, 2}, "it went on elsewhere");
  }));
}
