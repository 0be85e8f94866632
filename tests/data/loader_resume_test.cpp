// An epoch that is left and goes on later, on the same or another number of ranks.
#include <algorithm>
#include <thread>

#include "data/loader_base.h"
#include "support/index_data.h"

using namespace tandem;
using namespace tandem::test;

TEST_CASE("resuming at any step gives what running through gives, and reads nothing twice") {
  const bool dispatch = GENERATE(false, true);
  const bool seedable = GENERATE(false, true);
  const int workers = GENERATE(0, 2);
  CAPTURE(dispatch, seedable, workers);
  const LaunchConfig config{.data_loader = {.dispatch_batches = dispatch, .use_seedable_sampler = seedable}};
  const data::DataLoaderOptions options{.batch_size = 2, .shuffle = true, .seed = 5, .workers = workers};
  // Three epochs of 5 steps, with the state after each step and at the start.
  struct Seen {
    std::vector<Batch> batches;
    std::vector<data::LoaderState> states;
  };
  const auto run = on_ranks<Seen>(2, config, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Indices(19), options));
    Seen seen;
    seen.states.push_back(loader.state_dict());
    for (int epoch = 0; epoch < 3; ++epoch)
      for (auto& batch : loader) {
        seen.batches.push_back(list(batch));
        seen.states.push_back(loader.state_dict());
      }
    return seen;
  });
  for (std::size_t at = 0; at < run[0].states.size(); ++at) {
    std::vector<Indices> datasets(2, Indices(19));
    const auto rest = on_ranks<std::vector<Batch>>(2, config, [&](Accelerator& accelerator) {
      const auto rank = static_cast<std::size_t>(accelerator.rank());
      Indices dataset(19);
      dataset.reads = datasets[rank].reads = std::make_shared<std::atomic<int>>(0);
      auto loader = accelerator.prepare(data::DataLoader(dataset, options));
      loader.load_state_dict(run[rank].states[at]);
      std::vector<Batch> batches;
      while (loader.epoch() < 3)
        for (auto& batch : loader) batches.push_back(list(batch));
      return batches;
    });
    for (std::size_t rank = 0; rank < 2; ++rank) {
      const auto& all = run[rank].batches;
      CHECK(rest[rank] == std::vector<Batch>(all.begin() + static_cast<std::ptrdiff_t>(at), all.end()));
    }
    const int read = *datasets[0].reads + *datasets[1].reads;
    CHECK(read == 2 * static_cast<int>(run[0].batches.size() - at));
  }
}

TEST_CASE("an epoch goes on on another number of ranks where it was left, with the same global batch") {
  const auto first = on_ranks<data::LoaderState>(4, [](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Indices(40), {.batch_size = 2, .shuffle = true, .seed = 1}));
    for (auto& batch : loader) {
      (void)batch;
      if (loader_of(loader).status().step == 1) return loader.state_dict();
    }
    throw std::runtime_error("never");
  });
  const auto resume = [&](int ranks) {
    const auto parts = on_ranks<std::vector<Batch>>(ranks, [&](Accelerator& accelerator) {
      auto loader = accelerator.prepare(
          data::DataLoader(Indices(40), {.batch_size = 8 / accelerator.world_size(), .shuffle = true, .seed = 1}));
      loader.load_state_dict(first[0]);
      std::vector<Batch> gathered;
      for (auto& batch : loader) gathered.push_back(list(accelerator.gather(batch)));
      return gathered;
    });
    return parts[0];
  };
  const auto expected = resume(4);
  CHECK(expected.size() == 3);
  for (const int ranks : {1, 2, 8}) CHECK(resume(ranks) == expected);
  const auto error = run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
    accelerator.prepare(data::DataLoader(Indices(40), {.batch_size = 2, .shuffle = true})).load_state_dict(first[0]);
  });
  CHECK_THAT(error.what(), ContainsSubstring("global batch of 8") && ContainsSubstring("has 4"));
}

TEST_CASE("an iterable resumes by reading on from where it was left") {
  const auto batches = on_ranks<std::vector<Batch>>(2, [](Accelerator& accelerator) {
    data::LoaderState state;
    {
      auto loader = accelerator.prepare(data::DataLoader(counting(11), {.batch_size = 2}));
      for (auto& batch : loader) {
        (void)batch;
        state = loader.state_dict();
        break;
      }
    }
    auto loader = accelerator.prepare(data::DataLoader(counting(11), {.batch_size = 2}));
    loader.load_state_dict(state);
    return one_epoch(loader);
  });
  CHECK(batches == std::vector<std::vector<Batch>>{{{4, 5}, {8, 9}}, {{6, 7}, {10, 0}}});
}
