#include "data/worker_pool.h"

#include <atomic>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>

#include "support/catch.h"
#include "tandem/core/error.h"

using namespace tandem;
using data::WorkerPool;

namespace {

// Jobs 0 .. count-1, each giving its number, and `during` called within.
std::function<WorkerPool::Job()> numbers(
    int count, std::function<void(int)> during = [](int) {}) {
  return [next = std::make_shared<int>(0), count, during]() -> WorkerPool::Job {
    if (*next == count) return {};
    return [number = (*next)++, during]() -> WorkerPool::Result {
      during(number);
      return std::make_shared<int>(number);
    };
  };
}

std::vector<int> take_all(WorkerPool::Queue& queue) {
  std::vector<int> taken;
  while (const auto result = *queue.take()) taken.push_back(*std::static_pointer_cast<int>(result));
  return taken;
}

void sleep_a_little(int number) { std::this_thread::sleep_for(std::chrono::microseconds(number * 37 % 200)); }

}  // namespace

TEST_CASE("results come in the order of the jobs, whatever the number of threads and the depth") {
  const int threads = GENERATE(1, 2, 5);
  const int depth = GENERATE(1, 3, 20);
  CancelToken token;
  const auto pool = std::make_shared<WorkerPool>(threads, "loader", token);
  WorkerPool::Queue queue(pool, static_cast<std::size_t>(depth), true, numbers(100, sleep_a_little));
  const auto taken = take_all(queue);
  REQUIRE(taken.size() == 100);
  for (int i = 0; i < 100; ++i) CHECK(taken[static_cast<std::size_t>(i)] == i);
  CHECK(*queue.take() == nullptr);  // and it stays at its end
}

TEST_CASE("out of order each result comes once, and a slow job holds back nobody") {
  CancelToken token;
  const auto pool = std::make_shared<WorkerPool>(2, "loader", token);
  std::atomic<bool> release{false};
  WorkerPool::Queue queue(pool, 4, false, numbers(20, [&](int number) {
                            if (number == 0) release.wait(false);
                          }));
  std::set<int> seen;
  for (int i = 0; i < 19; ++i) seen.insert(*std::static_pointer_cast<int>(*queue.take()));
  CHECK(seen.count(0) == 0);
  CHECK(seen.size() == 19);
  release = true;
  release.notify_all();
  CHECK(*std::static_pointer_cast<int>(*queue.take()) == 0);
  CHECK(*queue.take() == nullptr);
}

TEST_CASE("no more jobs are drawn than the depth allows") {
  CancelToken token;
  const auto pool = std::make_shared<WorkerPool>(3, "loader", token);
  std::atomic<int> done{0};
  WorkerPool::Queue queue(pool, 4, true, numbers(100, [&](int) { done += 1; }));
  for (int taken = 0; taken < 100; ++taken) {
    REQUIRE(*queue.take() != nullptr);
    CHECK(done <= taken + 1 + 4);
  }
}

TEST_CASE("several consumers share the threads, each with its own order") {
  CancelToken token;
  const auto pool = std::make_shared<WorkerPool>(2, "loader", token);
  std::vector<std::vector<int>> taken(4);
  {
    std::vector<std::thread> consumers;
    for (auto& mine : taken)
      consumers.emplace_back([&pool, &mine] {
        WorkerPool::Queue queue(pool, 2, true, numbers(200, sleep_a_little));
        mine = take_all(queue);
      });
    for (auto& consumer : consumers) consumer.join();
  }
  for (const auto& mine : taken) {
    REQUIRE(mine.size() == 200);
    CHECK(std::is_sorted(mine.begin(), mine.end()));
  }
}

TEST_CASE("what a job or the drawing of jobs throws reaches the consumer in its place") {
  CancelToken token;
  const auto pool = std::make_shared<WorkerPool>(2, "loader", token);
  WorkerPool::Queue jobs(pool, 2, true, numbers(5, [](int number) {
                           if (number == 2) throw std::runtime_error("job 2");
                         }));
  CHECK(*std::static_pointer_cast<int>(*jobs.take()) == 0);
  CHECK(*std::static_pointer_cast<int>(*jobs.take()) == 1);
  CHECK_THROWS_WITH(jobs.take(), "job 2");
  CHECK(*std::static_pointer_cast<int>(*jobs.take()) == 3);
  WorkerPool::Queue drawing(pool, 2, true, []() -> WorkerPool::Job { throw std::runtime_error("drawing"); });
  CHECK_THROWS_WITH(drawing.take(), "drawing");
  CHECK(*drawing.take() == nullptr);
}

TEST_CASE("a timeout returns without a result, which may still be taken later") {
  CancelToken token;
  const auto pool = std::make_shared<WorkerPool>(1, "loader", token);
  std::atomic<bool> release{false};
  WorkerPool::Queue queue(pool, 1, true, numbers(1, [&](int) { release.wait(false); }));
  CHECK(!queue.take(std::chrono::milliseconds(5)).has_value());
  CHECK(!queue.ready());
  release = true;
  release.notify_all();
  CHECK(*queue.take() != nullptr);
}

TEST_CASE("a cancel wakes a consumer that waits for a job, and threads that wait for work") {
  CancelToken token;
  auto pool = std::make_shared<WorkerPool>(2, "loader", token);
  std::atomic<bool> release{false};
  {
    WorkerPool::Queue queue(pool, 1, true, numbers(1, [&](int) { release.wait(false); }));
    std::thread consumer([&] { CHECK_THROWS_AS(queue.take(), Cancelled); });
    token.cancel(std::make_exception_ptr(Error("enough")));
    consumer.join();
    release = true;
    release.notify_all();
  }
  pool.reset();  // joins
}

TEST_CASE("a queue that goes away in the middle waits for its running jobs and draws no more") {
  CancelToken token;
  const auto pool = std::make_shared<WorkerPool>(3, "loader", token);
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::atomic<int> running{0}, drawn{0};
    {
      WorkerPool::Queue queue(pool, 1 + random() % 5, random() % 2 == 0, numbers(50, [&](int number) {
                                running += 1;
                                drawn += 1;
                                sleep_a_little(number);
                                running -= 1;
                              }));
      for (unsigned taken = 0, wanted = random() % 6; taken < wanted; ++taken) queue.take();
    }
    REQUIRE(running == 0);
    const int before = drawn;
    std::this_thread::yield();
    REQUIRE(drawn == before);
  }
}

TEST_CASE("threads begin with the function given, and what it throws ends the launch") {
  CancelToken token;
  std::atomic<int> sum{0};
  {
    const auto pool = std::make_shared<WorkerPool>(3, "loader", token, [&](int index) { sum += index + 1; });
    while (sum != 6) std::this_thread::yield();
  }
  const auto failing =
      std::make_shared<WorkerPool>(1, "loader", token, [](int) { throw std::runtime_error("no licence"); });
  WorkerPool::Queue queue(failing, 1, true, numbers(1));
  CHECK_THROWS_WITH(queue.take(), ContainsSubstring("no licence"));
}
