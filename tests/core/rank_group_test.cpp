// Exchanges of small values between ranks.
#include "comm/rank_group.h"

#include <functional>
#include <thread>
#include <vector>

#include "support/catch.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::comm;

TEST_CASE("after a meeting that was refused on one rank the ranks' values are still those of the same meeting") {
  constexpr int kRanks = 2;
  const CallRecord record{.operation = "barrier"};
  CancelToken token;
  RankGroup group(kRanks, token);
  std::vector<std::vector<std::uint64_t>> met(kRanks);
  const auto run = [&](int rank) {
    for (std::uint64_t meeting = 0; meeting < 6; ++meeting) {
      if (rank == 1 && meeting % 2 == 1) {
        group.forbid_calls(rank, true);
        CHECK_THROWS_AS(group.meet(rank, record, 1000 + meeting), ConfigError);
        group.forbid_calls(rank, false);
      }
      for (const std::uint64_t value : group.meet(rank, record, 10 * meeting + static_cast<std::uint64_t>(rank)))
        met[static_cast<std::size_t>(rank)].push_back(value);
    }
  };
  std::thread other([&] { run(1); });
  run(0);
  other.join();
  const std::vector<std::uint64_t> all{0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 50, 51};
  CHECK(met[0] == all);
  CHECK(met[1] == all);
}

TEST_CASE("calls are the same when their operations read the same, wherever the text lies") {
  char copy[] = "prepare";
  CHECK(CallRecord{.operation = copy} == CallRecord{.operation = "prepare"});
  CHECK_FALSE(CallRecord{.operation = "prepared"} == CallRecord{.operation = "prepare"});
  CHECK_FALSE(CallRecord{.operation = "reduce", .reduce = ReduceOp::sum} ==
              CallRecord{.operation = "reduce", .reduce = ReduceOp::max});
}

TEST_CASE("a call reads as its caller describes it") {
  CallRecord call{.operation = "prepare"};
  CHECK(to_string(call) == "prepare");
  call = {.operation = "reduce", .reduce = ReduceOp::mean, .root_receives = true, .root = 3};
  CHECK(to_string(call) == "reduce(mean) to rank 3");
  call = {
      .operation = "broadcast", .dims = 2, .elements = 26, .root = 1, .tensors = 2, .sizes = {4, 5}, .type = "Float"};
  CHECK(to_string(call) == "broadcast from rank 1 of Float[4, 5] and 1 more (26 elements)");
  call = describe_object_call("gather_objects", typeid(std::vector<int>));
  CHECK(to_string(call) == "gather_objects");
  call.shows_type = true;
  CHECK_THAT(to_string(call), ContainsSubstring("gather_objects of std::vector<int"));
}
