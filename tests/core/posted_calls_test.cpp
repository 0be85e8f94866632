// Reductions that are started and waited for later, without LibTorch, so that ThreadSanitizer sees them.
#include "comm/posted_calls.h"

#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "comm/rank_group.h"
#include "comm/shared_reducer.h"
#include "support/catch.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::comm;

namespace {

void run_ranks(int ranks, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back([&, rank] { body(rank); });
  for (auto& thread : threads) thread.join();
}

float value_of(int rank, int call, std::int64_t at) { return static_cast<float>((rank + 1) * (call % 7) + at % 13); }

// One started reduction from `inputs` into `outputs`; lent memory is freed with it.
struct Reduction {
  Reduction(int rank, int call, std::int64_t length) : inputs(static_cast<std::size_t>(length)), outputs(inputs) {
    for (std::int64_t i = 0; i < length; ++i) inputs[static_cast<std::size_t>(i)] = value_of(rank, call, i);
    from = {inputs.data(), length, ElementType::float32};
    to = {outputs.data(), length, ElementType::float32};
    lent = {{&from, 1}, {&to, 1}, ReduceOp::sum};
  }

  int wrong(int ranks, int call) const {
    int count = 0;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      float sum = 0;
      for (int rank = 0; rank < ranks; ++rank) sum += value_of(rank, call, static_cast<std::int64_t>(i));
      count += outputs[i] != sum;
    }
    return count;
  }

  std::vector<float> inputs, outputs;
  ElementRow from, to;
  SharedReducer::Lists lent;
};

// Passes of a few reductions with random delays, other for each rank, and a meeting now and then: returns how many
// elements were wrong.
int wrong_passes(RankGroup& group, int rank, int passes) {
  SharedReducer reducer(group, rank);
  std::mt19937 lengths(3), delays(static_cast<unsigned>(rank));
  int wrong = 0, call = 0;
  std::vector<std::unique_ptr<Reduction>> started;
  try {
    for (int pass = 0; pass < passes; ++pass) {
      const int first = call;
      std::uint64_t last = 0;
      started.clear();
      for (unsigned n = 1 + lengths() % 5; n > 0; --n, ++call) {
        const std::int64_t length = lengths() % 3000;
        started.push_back(std::make_unique<Reduction>(rank, call, length));
        if (delays() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(delays() % 100));
        last = reducer.start({.operation = "all_reduce", .elements = length}, started.back()->lent);
      }
      if (lengths() % 2 == 0) group.meet(rank, {.operation = "barrier"});
      reducer.wait(last);
      for (std::size_t i = 0; i < started.size(); ++i)
        wrong += started[i]->wrong(group.world_size(), first + static_cast<int>(i));
    }
  } catch (...) {
    group.token().cancel(std::current_exception(), rank);
    group.posted().withdraw(rank);  // before `started` goes
    throw;
  }
  return wrong;
}

// Runs `body` on two ranks and returns what each was told.
std::vector<std::string> told(RankGroup& group, const std::function<void(int)>& body) {
  std::vector<std::string> texts(2);
  run_ranks(2, [&](int rank) {
    try {
      body(rank);
    } catch (const Error& error) {
      group.token().cancel(std::current_exception(), rank);
      group.posted().withdraw(rank);
      texts[static_cast<std::size_t>(rank)] = error.what();
    }
  });
  return texts;
}

}  // namespace

TEST_CASE("started reductions are right whatever the timing, with more ranks than cores too") {
  const int ranks = GENERATE(1, 2, 3, 8);
  CancelToken token;
  RankGroup group(ranks, token);
  std::vector<int> wrong(static_cast<std::size_t>(ranks));
  run_ranks(ranks, [&](int rank) { wrong[static_cast<std::size_t>(rank)] = wrong_passes(group, rank, 300); });
  CHECK(wrong == std::vector<int>(static_cast<std::size_t>(ranks), 0));
}

TEST_CASE("a rank that starts a reduction does not wait for the others") {
  CancelToken token;
  RankGroup group(2, token);
  std::atomic<bool> started{false};
  std::vector<int> wrong(2);
  run_ranks(2, [&](int rank) {
    SharedReducer reducer(group, rank);
    if (rank == 1) started.wait(false);
    std::vector<std::unique_ptr<Reduction>> reductions;
    for (int call = 0; call < 3; ++call) {
      reductions.push_back(std::make_unique<Reduction>(rank, call, 1000));
      reducer.start({.operation = "all_reduce"}, reductions.back()->lent);
    }
    started = true;
    started.notify_all();
    reducer.wait(3);
    for (int call = 0; call < 3; ++call)
      wrong[static_cast<std::size_t>(rank)] += reductions[static_cast<std::size_t>(call)]->wrong(2, call);
  });
  CHECK(wrong == std::vector<int>{0, 0});
}

TEST_CASE("a cancel at any moment ends started reductions, and nobody reads memory that is gone") {
  std::mt19937 random(5);
  for (int trial = 0; trial < 100; ++trial) {
    CancelToken token;
    RankGroup group(3, token);
    std::atomic<int> ended{0};
    std::thread canceller([&, delay = random() % 500] {
      std::this_thread::sleep_for(std::chrono::microseconds(delay));
      token.cancel(nullptr);
    });
    run_ranks(3, [&](int rank) {
      try {
        wrong_passes(group, rank, 1'000'000);
      } catch (const Cancelled&) {
        ended += 1;
      }
    });
    canceller.join();
    REQUIRE(ended == 3);
  }
}

TEST_CASE("reductions that differ end all ranks with the difference") {
  CancelToken token;
  RankGroup group(2, token);
  const auto texts = told(group, [&](int rank) {
    SharedReducer reducer(group, rank);
    Reduction reduction(rank, 0, 100);
    try {
      reducer.wait(reducer.start({.operation = "all_reduce", .elements = 100 + rank}, reduction.lent));
    } catch (...) {
      token.cancel(std::current_exception(), rank);
      group.posted().withdraw(rank);  // before `reduction` goes
      throw;
    }
  });
  for (const std::string& text : texts) CHECK_THAT(text, ContainsSubstring("ranks reduce different gradients"));
}

TEST_CASE("a rank that returns ends those who wait for its reductions, whoever comes first") {
  for (int trial = 0; trial < 20; ++trial) {
    CancelToken token;
    RankGroup group(2, token);
    const auto texts = told(group, [&](int rank) {
      std::this_thread::sleep_for(std::chrono::microseconds((trial % 2 == rank) ? 200 : 0));
      if (rank == 1) return group.depart(rank);
      SharedReducer reducer(group, rank);
      Reduction reduction(rank, 0, 100);
      reducer.wait(reducer.start({.operation = "all_reduce"}, reduction.lent));
    });
    CHECK_THAT(texts[0], ContainsSubstring("rank 1 returned from its body"));
    CHECK(texts[1].empty());
  }
}

TEST_CASE("too many started reductions are an error, and forgotten ones do not count") {
  CancelToken token;
  RankGroup group(2, token);
  int nothing = 0;
  const auto post = [&] { return group.posted().post(0, {}, &nothing); };
  for (std::uint64_t i = 0; i < PostedCalls::kOpen; ++i) post();
  CHECK_THROWS_WITH(post(), ContainsSubstring("larger buckets"));
  group.posted().forget(0);
  CHECK(post() == 1);
}
