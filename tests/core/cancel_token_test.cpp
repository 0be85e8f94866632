#include "core/cancel_token.h"

#include <stdexcept>
#include <thread>
#include <vector>

#include "support/catch.h"
#include "tandem/core/error.h"

using tandem::CancelToken;

namespace {
std::exception_ptr problem(const char* text) { return std::make_exception_ptr(std::runtime_error(text)); }
}  // namespace

TEST_CASE("a token that has not fired lets everything pass") {
  CancelToken token;
  CHECK_FALSE(token.cancelled());
  CHECK_NOTHROW(token.check());
  CHECK(token.reason() == nullptr);
  CHECK(token.rank() == -1);
}

TEST_CASE("only the first cancel counts") {
  CancelToken token;
  CHECK(token.cancel(problem("disk on fire"), 3));
  CHECK_FALSE(token.cancel(problem("too late"), 4));
  CHECK(token.rank() == 3);
  CHECK_THROWS_WITH(std::rethrow_exception(token.reason()), "disk on fire");
}

TEST_CASE("check quotes the reason and its rank") {
  CancelToken token;
  token.cancel(problem("disk on fire"), 3);
  CHECK_THROWS_AS(token.check(), tandem::Cancelled);
  CHECK_THROWS_WITH(token.check(), ContainsSubstring("disk on fire") && ContainsSubstring("rank 3"));
}

TEST_CASE("a subscription is called when the token fires, and at once when it has fired before") {
  CancelToken token;
  int calls = 0;
  CancelToken::Subscription before(token, [&] { calls += 1; });
  CHECK(calls == 0);
  token.cancel(problem("x"));
  CHECK(calls == 1);
  CancelToken::Subscription after(token, [&] { calls += 10; });
  CHECK(calls == 11);
}

TEST_CASE("a subscription that is gone is not called") {
  CancelToken token;
  int calls = 0;
  {
    CancelToken::Subscription gone(token, [&] { calls += 1; });
  }
  token.cancel(problem("x"));
  CHECK(calls == 0);
}

TEST_CASE("of many threads that cancel at once exactly one wins, and its reason stays") {
  for (int round = 0; round < 200; ++round) {
    CancelToken token;
    std::atomic<int> winners{0}, winner{-1};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&, i] {
        if (token.cancel(problem("x"), i)) {
          winners += 1;
          winner = i;
        }
      });
    for (auto& thread : threads) thread.join();
    REQUIRE(winners == 1);
    REQUIRE(token.rank() == winner);
  }
}

TEST_CASE("a rank error nests the exception that was handled, with its type") {
  struct MyError : std::runtime_error {
    using std::runtime_error::runtime_error;
    int code = 7;
  };
  try {
    try {
      throw MyError("mine");
    } catch (...) {
      throw tandem::RankError(2, "rank 2: mine");
    }
  } catch (const tandem::RankError& error) {
    CHECK(error.rank() == 2);
    CHECK_THROWS_AS(error.rethrow_cause(), MyError);
    CHECK_THROWS_AS(std::rethrow_if_nested(error), MyError);
  }
}
