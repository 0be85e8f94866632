// An error of one rank as that of all.
#include "comm/agree.h"

#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::comm;

namespace {

constexpr CallRecord kRecord{.operation = "prepare"};

// What `call(group, rank)` throws on each rank, several times in a row.
std::vector<std::vector<std::string>> texts(int ranks, int times, const std::function<void(RankGroup&, int)>& call) {
  CancelToken token;
  RankGroup group(ranks, token);
  std::vector<std::vector<std::string>> texts(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      for (int i = 0; i < times; ++i) {
        std::string text;
        try {
          call(group, rank);
        } catch (const std::exception& error) {
          text = error.what();
        }
        texts[static_cast<std::size_t>(rank)].push_back(std::move(text));
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK_FALSE(token.cancelled());
  return texts;
}

std::exception_ptr refusal(const char* text) { return std::make_exception_ptr(ConfigError(text)); }

}  // namespace

TEST_CASE("what a check throws on any rank all ranks throw, again and again, and those of lower rank first") {
  const auto seen = texts(4, 50, [](RankGroup& group, int rank) {
    check_together(group, rank, kRecord, [&] {
      if (rank == 1) throw std::out_of_range("of rank 1");
      if (rank == 3) throw std::runtime_error("of rank 3");
    });
  });
  for (const auto& of_rank : seen) CHECK(of_rank == std::vector<std::string>(50, "of rank 1"));
  const auto fine = texts(4, 50, [](RankGroup& group, int rank) { check_together(group, rank, kRecord, [] {}); });
  for (const auto& of_rank : fine) CHECK(of_rank == std::vector<std::string>(50));
}

TEST_CASE("ranks that claim the same agree, and others are told of both") {
  const auto claim = [](int rank, int odd) {
    return [rank, odd](RankGroup& group, int mine) {
      agree(group, mine, kRecord,
            {.signature = mine == rank ? 7u : 8u,
             .refusal = mine == odd ? refusal("no disk") : nullptr,
             .describe = [mine] { return "call " + std::to_string(mine); }});
    };
  };
  const std::string difference =
      "ranks make different collective calls: call 0 on rank 0, but call 2 on rank 2; all ranks must give the same "
      "structure and types";
  for (const auto& of_rank : texts(3, 20, claim(-1, -1))) CHECK(of_rank == std::vector<std::string>(20));
  for (const auto& of_rank : texts(3, 20, claim(2, -1))) CHECK(of_rank == std::vector<std::string>(20, difference));
  for (const auto& of_rank : texts(3, 20, claim(2, 1)))
    CHECK(of_rank == std::vector<std::string>(20, "no disk (on rank 1)"));
}

TEST_CASE("a claim that all ranks refuse is refused in their own words") {
  const auto seen = texts(2, 3, [](RankGroup& group, int rank) {
    agree(group, rank, kRecord, {.signature = 0, .refusal = refusal("0 steps"), .describe = {}});
  });
  for (const auto& of_rank : seen) CHECK(of_rank == std::vector<std::string>(3, "0 steps"));
  const auto zero = texts(2, 3, [](RankGroup& group, int rank) {  // a signature like any other
    agree(group, rank, kRecord, {.signature = 0, .refusal = nullptr, .describe = {}});
  });
  for (const auto& of_rank : zero) CHECK(of_rank == std::vector<std::string>(3));
}

TEST_CASE("whoever waits for a rank's claim is woken when the launch is cancelled") {
  CancelToken token;
  RankGroup group(2, token);
  std::thread other([&] { token.cancel(std::make_exception_ptr(std::runtime_error("stop")), 1); });
  CHECK_THROWS_AS(check_together(group, 0, kRecord, [] {}), Cancelled);
  CHECK_THROWS_AS(agree(group, 0, kRecord, {}), Cancelled);
  other.join();
}

TEST_CASE("ranks read each other's objects, and a root that is none, or not the same, is an error of all") {
  const auto none = texts(3, 20, [](RankGroup& group, int rank) {
    const auto all = comm::detail::gather_objects(group, rank, std::string(1, static_cast<char>('a' + rank)));
    if (all != std::vector<std::string>{"a", "b", "c"}) throw std::logic_error("wrong objects");
    if (comm::detail::broadcast_object(group, rank, std::to_string(rank), 2) != "2")
      throw std::logic_error("wrong object");
    if (comm::detail::object_of_main(group, rank, "prepare", rank) != 0) throw std::logic_error("not rank 0's");
  });
  for (const auto& of_rank : none) CHECK(of_rank == std::vector<std::string>(20));
  const auto wrong = texts(3, 3, [](RankGroup& group, int rank) {
    comm::detail::broadcast_object(group, rank, std::to_string(rank), rank == 1 ? -1 : 0);
  });
  const std::string refused = "broadcast_object with root -1; ranks are 0 to 2 (on rank 1)";
  for (const auto& of_rank : wrong) CHECK(of_rank == std::vector<std::string>(3, refused));
  const auto differ =
      texts(2, 3, [](RankGroup& group, int rank) { comm::detail::broadcast_object(group, rank, 1.5, rank); });
  const std::string difference =
      "ranks make different collective calls: broadcast_object from rank 0 of double on rank 0, but broadcast_object "
      "from rank 1 of double on rank 1; all ranks must give the same structure and types";
  for (const auto& of_rank : differ) CHECK(of_rank == std::vector<std::string>(3, difference));
}
