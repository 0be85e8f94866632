// The life of NCCL communicators against a fake NCCL: every call failing, hanging, or returning late.
#include "comm/nccl/team.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.h"
#include "support/fake_nccl.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::comm;
using namespace tandem::comm::nccl;
using Catch::Matchers::ContainsSubstring;
using tandem::test::FakeNccl;

namespace {

// Long enough for what must succeed; others where something is to hang.
const Limits kLimits{
    .init = std::chrono::seconds(60), .call = std::chrono::seconds(60), .end = std::chrono::seconds(60)};
const Limits kShort{.init = std::chrono::milliseconds(200),
                    .call = std::chrono::milliseconds(50),
                    .end = std::chrono::milliseconds(200)};
const Limits kPatient{
    .init = std::chrono::seconds(60), .call = std::chrono::milliseconds(50), .end = std::chrono::milliseconds(200)};

// A launch: its ranks' threads, and what they share.
class Launch {
 public:
  explicit Launch(int ranks, Limits limits = kLimits)
      : team(std::make_shared<Team>(nccl, group_of(ranks), names(ranks), limits)) {}

  // Runs `body` on all ranks; a rank that throws fires the token, and the launching thread then ends the communicators.
  LaunchEnd run(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    std::atomic<int> running{group->world_size()};
    for (int rank = 0; rank < group->world_size(); ++rank)
      threads.emplace_back([&, this, rank] {
        try {
          body(rank);
        } catch (...) {
          token->cancel(std::current_exception(), rank);
        }
        running -= 1;
      });
    while (running > 0 && !token->cancelled()) std::this_thread::yield();
    LaunchEnd ending;
    if (token->cancelled()) ending = team->abort();
    for (std::size_t rank = 0; rank < threads.size(); ++rank) {
      const auto& stuck = ending.stuck;
      const bool is_stuck = std::find(stuck.begin(), stuck.end(), static_cast<int>(rank)) != stuck.end();
      is_stuck ? threads[rank].detach() : threads[rank].join();
    }
    return token->cancelled() ? ending : team->finish();
  }

  std::string reason() const {
    try {
      if (token->reason()) std::rethrow_exception(token->reason());
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }

  std::shared_ptr<FakeNccl> nccl = std::make_shared<FakeNccl>();
  // Abandoned threads never touch them again.
  std::unique_ptr<CancelToken> token = std::make_unique<CancelToken>();
  std::unique_ptr<RankGroup> group;
  std::shared_ptr<Team> team;

 private:
  RankGroup& group_of(int ranks) {
    group = std::make_unique<RankGroup>(ranks, *token);
    return *group;
  }
  static std::vector<std::string> names(int ranks) {
    std::vector<std::string> all;
    for (int rank = 0; rank < ranks; ++rank) all.push_back("fake GPU " + std::to_string(rank));
    return all;
  }
};

Result sum_in_place(Api& api, Comm comm, float& value) {
  return api.all_reduce(&value, &value, 1, Type::f32, Op::sum, comm, nullptr);
}

// What a rank does that goes well.
void train(Launch& launch, int rank, int steps = 3) {
  launch.team->init(rank);
  for (int step = 0; step < steps; ++step) {
    float value = static_cast<float>(rank + 1);
    launch.team->issue(rank, "ncclAllReduce", [&](Api& api, Comm comm) { return sum_in_place(api, comm, value); });
    launch.group->meet(rank, {});  // all have issued it, so it is done
    launch.team->check(rank);
    const auto ranks = static_cast<float>(launch.group->world_size());
    if (value != ranks * (ranks + 1) / 2) throw Error("wrong sum");
  }
}

// The first part of Team::init, as of a rank that NCCL never hears of.
void exchange_id(Launch& launch, int rank) {
  UniqueId id{};
  const RankGroup::Call call(*launch.group, rank, {.operation = "connect"}, &id);
}

}  // namespace

TEST_CASE("communicators are made by all ranks, work, and are finalized and destroyed once each") {
  for (const int ranks : {1, 2, 4, 8}) {
    Launch launch(ranks);
    launch.nccl->delay("all_reduce", 3);
    launch.nccl->delay("finalize", 2000);
    const LaunchEnd ending = launch.run([&](int rank) { train(launch, rank); });
    CAPTURE(ranks, launch.reason(), ending.problem);
    CHECK_FALSE(launch.token->cancelled());
    CHECK(ending.problem.empty());
    CHECK(launch.nccl->violations().empty());
    CHECK(launch.nccl->alive() == 0);
    CHECK(launch.nccl->calls("finalize") == ranks);
    CHECK(launch.nccl->calls("destroy") == ranks);
    CHECK(launch.nccl->calls("abort") == 0);
  }
}

TEST_CASE("a call that fails names rank, device, call, NCCL's reason and the usual cause, and ends all") {
  struct Case {
    std::string function;
    int rank, code;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases{
      {"get_unique_id", -1, 2, {"rank 0", "ncclGetUniqueId", "fake error 2", "network"}},
      {"init_rank",
       1,
       5,
       {"rank 1 (fake GPU 1)", "ncclCommInitRankConfig", "fake error 5", "several ranks on one device"}},
      {"init_rank", 0, 3, {"rank 0 (fake GPU 0)", "fake error 3"}},
      {"async_error", 2, 1, {"rank 2 (fake GPU 2)", "fake error 1", "memory is full", "details of the fake"}},
      {"all_reduce", 2, 4, {"rank 2 (fake GPU 2)", "ncclAllReduce", "fake error 4", "details of the fake"}}};
  for (const Case& c : cases) {
    Launch launch(3);
    launch.nccl->fail(c.function, c.rank, static_cast<Result>(c.code));
    const LaunchEnd ending = launch.run([&](int rank) { train(launch, rank); });
    CAPTURE(c.function, launch.reason());
    CHECK(launch.token->cancelled());
    for (const auto& word : c.words) CHECK_THAT(launch.reason(), ContainsSubstring(word));
    CHECK(ending.problem.empty());
    CHECK(launch.nccl->violations().empty());
    CHECK(launch.nccl->alive() == 0);
  }
}

TEST_CASE("what NCCL finds wrong with work that was taken is found by the next check") {
  Launch launch(2);
  const LaunchEnd ending = launch.run([&](int rank) {
    launch.team->init(rank);
    launch.group->meet(rank, {});
    if (rank == 0) launch.nccl->break_work(static_cast<Result>(6));
    launch.group->meet(rank, {});
    launch.team->check(rank);
  });
  CHECK_THAT(launch.reason(), ContainsSubstring("fake error 6") && ContainsSubstring("another rank has failed"));
  CHECK(ending.problem.empty());
  CHECK(launch.nccl->alive() == 0);
}

TEST_CASE("a rank that throws, at any time, ends the communicators of all that have one") {
  for (const int when : {0, 1, 2}) {
    Launch launch(4);
    const LaunchEnd ending = launch.run([&](int rank) {
      if (when == 0 && rank == 3) throw Error("of the test");
      when == 1 ? launch.team->init(rank) : train(launch, rank);
      if (when > 0 && rank == 3) throw Error("of the test");
      launch.group->meet(rank, {});
    });
    CAPTURE(when, ending.problem);
    CHECK(launch.token->cancelled());
    CHECK(ending.problem.empty());
    CHECK(launch.nccl->violations().empty());
    CHECK(launch.nccl->alive() == 0);
  }
}

TEST_CASE("ranks that are not connected in time say so, and a new launch connects") {
  Launch launch(3, kShort);
  const LaunchEnd ending = launch.run([&](int rank) {
    if (rank == 2)
      exchange_id(launch, rank);
    else
      launch.team->init(rank);
  });
  CHECK_THAT(launch.reason(), ContainsSubstring("not connected rank") && ContainsSubstring("within 0.2 s"));
  CHECK(ending.problem.empty());
  CHECK(launch.nccl->alive() == 0);

  Launch next(3);
  CHECK(next.run([&](int rank) { train(next, rank); }).problem.empty());
  CHECK_FALSE(next.token->cancelled());
}

TEST_CASE("a call that returns late is waited for, and its thread joined") {
  Launch launch(2);
  launch.nccl->hang("all_reduce", 1);
  std::thread late([&] {
    while (!launch.token->cancelled()) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    launch.nccl->release();
  });
  const LaunchEnd ending = launch.run([&](int rank) {
    if (rank == 1) return train(launch, rank);
    launch.team->init(rank);
    while (!launch.nccl->is_hanging()) std::this_thread::yield();
    throw Error("of the test");
  });
  late.join();
  CHECK(ending.stuck.empty());
  CHECK(ending.problem.empty());
  CHECK(launch.nccl->violations().empty());
  CHECK(launch.nccl->alive() == 0);
}

TEST_CASE("a rank that NCCL does not give back is left behind, named, and sleeps when it comes back after all") {
  for (const std::string function : {"init_rank", "async_error", "all_reduce"}) {
    // What a thread left behind may still touch.
    const auto launch = std::make_shared<Launch>(3, kPatient);
    launch->nccl->hang(function, 1);
    std::atomic<bool> came_back{false};
    const LaunchEnd ending = launch->run([&](int rank) {
      if (rank < 2) {
        train(*launch, rank);
        came_back = true;
        return;
      }
      function == "all_reduce" ? launch->team->init(rank) : exchange_id(*launch, rank);
      while (!launch->nccl->is_hanging()) std::this_thread::yield();
      throw Error("of the test");
    });
    CAPTURE(function, ending.problem);
    CHECK(ending.stuck == std::vector<int>{1});
    CHECK_THAT(ending.problem, ContainsSubstring("rank 1 (fake GPU 1)") && ContainsSubstring("start the program anew"));
    CHECK_THAT(launch->reason(), ContainsSubstring("of the test"));
    launch->nccl->release();
    while (launch->nccl->is_hanging()) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK_FALSE(came_back);
  }
}

TEST_CASE("an end that hangs is left behind after the time limit") {
  for (const std::string function : {"abort", "finalize", "destroy"}) {
    const auto launch = std::make_shared<Launch>(2, kShort);
    launch->nccl->hang(function, 0);
    const LaunchEnd ending = launch->run([&](int rank) {
      train(*launch, rank);
      if (function == "abort" && rank == 1) throw Error("of the test");
    });
    CAPTURE(function, ending.problem);
    CHECK(ending.stuck.empty());
    CHECK_THAT(ending.problem, ContainsSubstring("within 0.2 s") && ContainsSubstring("start the program anew"));
    launch->nccl->release();
    while (launch->team.use_count() > 1) std::this_thread::yield();  // until the thread left behind has ended
    CHECK(launch->nccl->alive() == 0);
  }
}

TEST_CASE("communicators that cannot be finalized are aborted, and the reason given") {
  Launch launch(2);
  launch.nccl->fail("finalize", 1, static_cast<Result>(2));
  const LaunchEnd ending = launch.run([&](int rank) { train(launch, rank); });
  CHECK_THAT(ending.problem, ContainsSubstring("fake error 2"));
  CHECK(launch.nccl->calls("destroy") == 0);
  CHECK(launch.nccl->calls("abort") == 2);
  CHECK(launch.nccl->alive() == 0);
  CHECK(launch.nccl->violations().empty());
}

TEST_CASE("after the end nobody gets through to NCCL") {
  Launch launch(1);
  launch.run([&](int rank) { train(launch, rank); });
  const int calls = launch.nccl->calls("all_reduce");
  float value = 0;
  CHECK_THROWS_AS(
      launch.team->issue(0, "ncclAllReduce", [&](Api& api, Comm comm) { return sum_in_place(api, comm, value); }),
      Cancelled);
  CHECK(launch.nccl->calls("all_reduce") == calls);
}

TEST_CASE("communicators are renewed where ranks have called NCCL differently") {
  Launch launch(3);
  const LaunchEnd ending = launch.run([&](int rank) {
    launch.team->init(rank);
    float value = 0;
    if (rank != 1)
      launch.team->issue(rank, "ncclAllReduce", [&](Api& api, Comm comm) { return sum_in_place(api, comm, value); });
    launch.team->renew(rank);
    float next = 1;
    launch.team->issue(rank, "ncclAllReduce", [&](Api& api, Comm comm) { return sum_in_place(api, comm, next); });
    launch.group->meet(rank, {});
    if (next != 3 || value != 0) throw Error("wrong sum");
  });
  CHECK(launch.reason() == "");
  CHECK(ending.problem.empty());
  CHECK(launch.nccl->violations().empty());
  CHECK(launch.nccl->calls("abort") == 3);
  CHECK(launch.nccl->alive() == 0);
}
