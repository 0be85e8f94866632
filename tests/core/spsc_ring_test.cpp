#include "core/spsc_ring.h"

#include <memory>
#include <random>
#include <thread>

#include "support/catch.h"
#include "tandem/core/error.h"

using tandem::CancelToken;
using tandem::SpscRing;

TEST_CASE("items come out in the order they went in, for any capacity") {
  const std::size_t capacity = GENERATE(1u, 2u, 3u, 64u);
  CancelToken token;
  SpscRing<int> ring(capacity, token);
  constexpr int kItems = 200'000;
  std::thread producer([&] {
    for (int i = 0; i < kItems; ++i) ring.push(i);
    ring.close_producer();
  });
  int expected = 0, wrong = 0;
  while (auto item = ring.pop()) wrong += *item != expected++;
  producer.join();
  CHECK(wrong == 0);
  CHECK(expected == kItems);
}

TEST_CASE("a ring holds exactly its capacity") {
  CancelToken token;
  SpscRing<int> ring(3, token);
  int value = 5;
  for (int i = 0; i < 3; ++i) CHECK(ring.try_push(value));
  CHECK_FALSE(ring.try_push(value));
  CHECK(ring.size() == 3);
  CHECK(ring.try_pop() == 5);
  CHECK(ring.size() == 2);
  CHECK(ring.try_push(value));
}

TEST_CASE("move-only items pass through, and those left over are destroyed") {
  CancelToken token;
  auto counted = std::make_shared<int>(1);
  {
    SpscRing<std::unique_ptr<std::shared_ptr<int>>> ring(4, token);
    for (int i = 0; i < 3; ++i) ring.push(std::make_unique<std::shared_ptr<int>>(counted));
    CHECK(**ring.pop().value() == 1);
    CHECK(counted.use_count() == 3);
  }
  CHECK(counted.use_count() == 1);
}

TEST_CASE("a closed producer lets the consumer take what is left, then nothing") {
  CancelToken token;
  SpscRing<int> ring(4, token);
  ring.push(1);
  ring.push(2);
  ring.close_producer();
  ring.close_producer();
  CHECK(ring.pop() == 1);
  CHECK(ring.pop() == 2);
  CHECK(ring.pop() == std::nullopt);
}

TEST_CASE("closing wakes the side that sleeps") {
  CancelToken token;
  SpscRing<int> ring(1, token);
  SECTION("the consumer") {
    std::thread closer([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ring.close_producer();
    });
    CHECK(ring.pop() == std::nullopt);
    closer.join();
  }
  SECTION("the producer") {
    ring.push(1);
    std::thread closer([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ring.close_consumer();
    });
    CHECK_FALSE(ring.push(2));
    closer.join();
    CHECK_FALSE(ring.push(3));
  }
}

TEST_CASE("a cancel wakes the side that sleeps") {
  CancelToken token;
  SpscRing<int> ring(1, token);
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    token.cancel(nullptr);
  });
  SECTION("the consumer") { CHECK_THROWS_AS(ring.pop(), tandem::Cancelled); }
  SECTION("the producer") {
    ring.push(1);
    CHECK_THROWS_AS(ring.push(2), tandem::Cancelled);
  }
  canceller.join();
}

namespace {

// Both sides work at random, through all calls, until a cancel comes; returns how many items the consumer got, in
// order.
int run_until_cancelled(std::size_t capacity, std::uint32_t seed, std::chrono::microseconds delay) {
  CancelToken token;
  SpscRing<int> ring(capacity, token);
  const auto at_random = [&](std::uint32_t own_seed, const auto& blocking, const auto& trying) {
    std::mt19937 random(own_seed);
    try {
      for (;;) {
        const auto choice = random() % 64;
        if (choice == 0) std::this_thread::yield();
        if (choice < 24) {
          token.check();
          trying();
        } else {
          blocking();
        }
      }
    } catch (const tandem::Cancelled&) {
    }
  };
  std::thread producer([&] {
    int next = 0;
    at_random(
        seed, [&] { ring.push(next++); }, [&] { next += ring.try_push(next); });
  });
  int received = 0;
  bool in_order = true;
  std::thread consumer([&] {
    const auto take = [&](std::optional<int> item) {
      if (item) in_order = in_order && *item == received++;
    };
    at_random(
        seed + 1, [&] { take(ring.pop()); }, [&] { take(ring.try_pop()); });
  });
  std::this_thread::sleep_for(delay);
  token.cancel(nullptr);
  producer.join();
  consumer.join();
  CHECK(in_order);
  return received;
}

}  // namespace

TEST_CASE("millions of items at random, and a cancel at any moment: nothing hangs, is lost or comes twice") {
  std::mt19937 seeds(3);
  for (int trial = 0; trial < 200; ++trial)
    run_until_cancelled(1 + seeds() % 4, seeds(), std::chrono::microseconds(seeds() % 300));
  for (std::int64_t items = 0; items < 2'000'000;)
    items += run_until_cancelled(1 + seeds() % 64, seeds(), std::chrono::milliseconds(20));
}
