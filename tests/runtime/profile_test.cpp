// Accelerator::profile: what is recorded, and how it ends.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include <ATen/record_function.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <nlohmann/json.hpp>

#include "support/ranks.h"
#include "support/temp_dir.h"
#include "support/trace_file.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Training {
  int steps = 6;
  std::function<void(Accelerator&, int)> after_step = [](Accelerator&, int) {};
};

// A body that trains for some updates.
std::function<void()> train(Accelerator& accelerator, const Training& training = {}) {
  return [&accelerator, training] {
    torch::nn::Linear net(8, 4);
    torch::optim::SGD sgd(net->parameters(), 0.1);
    const int samples = training.steps * accelerator.world_size() * accelerator.gradient_state().micro_batches();
    auto [model, optimizer, loader] =
        accelerator.prepare(net, sgd, data::DataLoader(data::TensorDataset(at::ones({samples, 8})), {.batch_size = 1}));
    int step = 0;
    for (auto& batch : loader) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(model(batch).sum());
      accelerator.clip_grad_norm_(model, 1.0);
      optimizer.step();
      optimizer.zero_grad();
      if (accelerator.sync_gradients()) training.after_step(accelerator, ++step);
    }
  };
}

std::vector<std::string> names(const std::vector<TracedRange>& ranges) {
  std::vector<std::string> names;
  for (const auto& range : ranges) names.push_back(range.name);
  return names;
}

bool has_callbacks() { return !at::get_record_function_tls_().sorted_tls_callbacks_.empty(); }

std::string error_of(const ProfileOptions& options) {
  return run_ranks_expecting_error(2, [&](Accelerator& a) { a.profile(options, train(a)); }).what();
}

}  // namespace

TEST_CASE("time in nested ranges counts once, for the innermost") {
  const auto begin = std::chrono::steady_clock::now();
  std::chrono::nanoseconds sum{}, forward{};
  {
    const trace::Recorder recorder;
    {
      const trace::Range outer(trace::Event::micro_batch);
      const trace::Range middle(trace::Event::backward);
      for (int i = 0; i < 2; ++i) {
        const trace::Range inner(trace::Event::forward);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    }
    for (std::size_t kind = 0; kind < trace::kKinds; ++kind) sum += recorder.time(static_cast<trace::Kind>(kind));
    forward = recorder.time(trace::Kind::forward);
  }
  CHECK(sum <= std::chrono::steady_clock::now() - begin);
  CHECK(forward >= std::chrono::milliseconds(20));
}

TEST_CASE("a trace has a row a rank, in order, with the ranges and operators of the steps asked for") {
  TempDir dir;
  const int ranks = GENERATE(1, 3);
  run_ranks(ranks,
            [&](Accelerator& a) { a.profile({.directory = dir.path(), .first_step = 2, .last_step = 4}, train(a)); });
  const auto threads = read_trace(dir / "trace.json");
  REQUIRE(threads.size() == static_cast<std::size_t>(ranks));
  for (std::size_t rank = 0; rank < threads.size(); ++rank) {
    const TracedThread& thread = threads[rank];
    CAPTURE(rank, names(thread.ranges));
    CHECK(thread.name == "rank " + std::to_string(rank));
    CHECK_FALSE(thread.operators.empty());
    const auto steps = thread.all("micro-batch");
    CHECK(names(steps) ==
          std::vector<std::string>{"micro-batch of step 2", "micro-batch of step 3", "micro-batch of step 4"});
    const auto waits = thread.all("data-wait");
    REQUIRE(waits.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) CHECK(waits[i].end <= steps[i].begin);
    for (const char* name : {"forward", "backward", "clip", "optimizer", "gradient-wait"}) {
      const auto found = thread.all(name);
      CAPTURE(name);
      REQUIRE(found.size() == 3);
      for (std::size_t i = 0; i < 3; ++i) CHECK(found[i].within(steps[i]));
    }
    CHECK(thread.all("forward").front().end <= thread.all("backward").front().begin);
    CHECK(thread.all("gradient-wait").front().within(thread.all("backward").front()));
    // One rank has nothing to reduce. Weight and bias: 36 float32.
    const auto reductions = thread.all("all-reduce");
    REQUIRE(reductions.size() == (ranks == 1 ? 0U : 3U));
    for (const auto& one : reductions) CHECK(one.name == "all-reduce bucket 0, 144 bytes");
  }
}

TEST_CASE("micro-batches of a window are ranges of one step") {
  TempDir dir;
  Profile profile;
  run_ranks(2, {.gradient_accumulation_steps = 2}, [&](Accelerator& a) {
    const Profile mine = a.profile({.directory = dir.path(), .first_step = 2, .last_step = 3}, train(a, {.steps = 3}));
    if (a.is_main()) profile = mine;
  });
  for (const TracedThread& thread : read_trace(profile.trace)) {
    CHECK(names(thread.all("micro-batch")) == std::vector<std::string>{"micro-batch of step 2", "micro-batch of step 2",
                                                                       "micro-batch of step 3",
                                                                       "micro-batch of step 3"});
    CHECK(thread.all("optimizer").size() == 2);
  }
  for (const RankProfile& rank : profile.ranks) CHECK(rank.steps == 2);
}

TEST_CASE("the table's parts add up to the recorded time, which covers the trace") {
  TempDir dir;
  std::vector<Profile> profiles(2);
  const auto begin = std::chrono::steady_clock::now();
  run_ranks(2, [&](Accelerator& a) {
    profiles[static_cast<std::size_t>(a.rank())] = a.profile({.directory = dir.path()}, train(a));
  });
  const double around = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const auto threads = read_trace(dir / "trace.json");
  REQUIRE(threads.size() == 2);
  REQUIRE(profiles[0].ranks.size() == 2);
  CHECK(profiles[0].trace == dir / "trace.json");
  CHECK(profiles[0].table() == profiles[1].table());
  for (std::size_t rank = 0; rank < 2; ++rank) {
    const RankProfile& p = profiles[0].ranks[rank];
    CHECK(p.steps == 6);
    const double sum = p.data_wait + p.forward + p.backward + p.communication + p.optimizer + p.other;
    CHECK(sum == Approx(p.seconds));
    for (const double part : {p.data_wait, p.forward, p.backward, p.communication, p.optimizer}) CHECK(part > 0);
    CHECK(p.other >= 0);
    CHECK(p.seconds < around);
    const auto& ranges = threads[rank].ranges;
    CHECK(p.seconds >= 1e-6 * (ranges.back().end - ranges.front().begin));
  }
  const std::string table = profiles[0].table();
  CAPTURE(table);
  CHECK(std::count(table.begin(), table.end(), '\n') == 3);
  for (const char* word :
       {"rank", "ms/step", "data wait", "forward", "backward", "communication", "optimizer", "other"})
    CHECK_THAT(table, ContainsSubstring(word));
}

TEST_CASE("after the last step and after the profile nothing is recorded any more") {
  TempDir dir;
  const auto left = on_ranks<std::vector<bool>>(2, [&](Accelerator& a) {
    std::vector<bool> recorded;
    const auto note = [&](Accelerator&, int) { recorded.push_back(has_callbacks()); };
    a.profile({.directory = dir.path(), .first_step = 2, .last_step = 3}, train(a, {.steps = 4, .after_step = note}));
    recorded.push_back(has_callbacks());
    return recorded;
  });
  for (const auto& recorded : left) CHECK(recorded == std::vector<bool>{false, true, true, false, false});
}

TEST_CASE("a rank that leaves before others have come ends nothing for them") {
  TempDir dir;
  run_ranks(2, [&](Accelerator& a) {
    a.profile({.directory = dir.path(), .first_step = 2, .last_step = 2}, [&] {
      for (int i = 0; i < 3; ++i) {
        if (a.rank() == 1 && i == 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
        auto window = a.accumulate();
        at::ones({2}).add_(1);
      }
    });
  });
  for (const TracedThread& thread : read_trace(dir / "trace.json"))
    CHECK(names(thread.all("micro-batch")) == std::vector<std::string>{"micro-batch of step 2"});
}

TEST_CASE("a body without steps is recorded as a whole") {
  TempDir dir;
  run_ranks(2, [&](Accelerator& a) {
    const Profile profile = a.profile({.directory = dir.path()}, [&] { a.reduce(at::ones({3})); });
    if (profile.ranks.size() != 2 || profile.ranks[0].steps != 0) throw std::logic_error(profile.table());
  });
  for (const TracedThread& thread : read_trace(dir / "trace.json")) CHECK(thread.all("collective").size() == 1);
}

TEST_CASE("a body that ends before the first step gives no profile") {
  TempDir dir;
  run_ranks(2, [&](Accelerator& a) {
    const Profile profile = a.profile({.directory = dir.path(), .first_step = 7, .last_step = 9}, train(a));
    if (!profile.trace.empty() || !profile.ranks.empty()) throw std::logic_error(profile.trace);
  });
  CHECK_FALSE(std::filesystem::exists(dir / "trace.json"));
}

TEST_CASE("a body that fails ends its profile, with its own exception, and the next launch can have one") {
  TempDir dir;
  const int failing = GENERATE(0, 1, 2);
  const int step = GENERATE(1, 3, 5);  // before, within and after what is recorded
  const auto fail = [&](Accelerator& a, int ended) {
    if (a.rank() == failing && ended == step) throw std::runtime_error("disk on fire");
  };
  const auto error = run_ranks_expecting_error(3, [&](Accelerator& a) {
    a.profile({.directory = dir.path(), .first_step = 3, .last_step = 4}, train(a, {.after_step = fail}));
  });
  CHECK(error.rank() == failing);
  CHECK_THAT(error.what(), ContainsSubstring("disk on fire"));
  CHECK_FALSE(std::filesystem::exists(dir / "trace.json"));
  run_ranks(2, [&](Accelerator& a) { a.profile({.directory = dir / "next"}, train(a)); });
  CHECK(read_trace(dir / "next/trace.json").size() == 2);
}

TEST_CASE("profiles of one launch have a trace each, however late a rank leaves the one before") {
  TempDir dir;
  const std::vector<std::string> names{"a", "b", "c", "d", "e", "f", "g", "h"};
  run_ranks(4, [&](Accelerator& a) {
    for (const auto& name : names) a.profile({.directory = dir / name}, train(a, {.steps = 2}));
  });
  for (const auto& name : names)
    for (const TracedThread& thread : read_trace(dir / name + "/trace.json"))
      CHECK(thread.all("micro-batch").size() == 2);
}

TEST_CASE("a range and a folder whose names are no UTF-8 leave a trace that can be read") {
  const TempDir dir;
  const std::string folder = dir / "p\xff";
  std::filesystem::create_directory(folder);
  run_ranks(1, [&](Accelerator& a) {
    a.profile({.directory = folder}, [&] {
      RECORD_USER_SCOPE("mine \xff");
      at::ones({3}).add_(1);
    });
  });
  const auto trace = nlohmann::json::parse(std::ifstream(folder + "/trace.json"));
  CHECK_THAT(trace["traceName"].get<std::string>(), ContainsSubstring("p\xef\xbf\xbd/trace.json"));
  std::set<std::string> ranges;
  for (const auto& event : trace["traceEvents"])
    if (event.value("cat", "") == "user_annotation") ranges.insert(event["name"].get<std::string>());
  CHECK(ranges == std::set<std::string>{"unknown"});  // LibTorch's word for such a name
}

TEST_CASE("what cannot be profiled is an error that says why") {
  TempDir dir;
  CHECK_THAT(error_of({.directory = dir.path(), .first_step = 0}), ContainsSubstring("the first one is 1"));
  CHECK_THAT(error_of({.directory = dir.path(), .first_step = 3, .last_step = 2}), ContainsSubstring("3 to 2"));
  CHECK_THAT(error_of({}), ContainsSubstring("no directory"));
  CHECK_THAT(error_of({.directory = "/dev/null/x"}), ContainsSubstring("/dev/null/x"));
  const auto nested = run_ranks_expecting_error(2, [&](Accelerator& a) {
    a.profile({.directory = dir.path()}, [&] { a.profile({.directory = dir.path()}, [] {}); });
  });
  CHECK_THAT(nested.what(), ContainsSubstring("one at a time"));
}
