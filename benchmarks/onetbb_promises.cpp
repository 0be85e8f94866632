// onetbb_promises: what oneTBB does with reads that wait for long, and with workers that have numbers. Why a loader has
// a thread of its own (docs/internals.md, section 9). oneTBB's warnings are part of what it says.
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

namespace {

using namespace std::chrono_literals;
constexpr auto kLimit = tbb::global_control::max_allowed_parallelism;
constexpr int kWorkers = 2;

// A limit, unless it is 0.
class Limit {
 public:
  explicit Limit(std::size_t threads) {
    if (threads) control_.emplace(kLimit, threads);
  }

 private:
  std::optional<tbb::global_control> control_;
};

// Whether a read of a loader with an arena of its own begins within two seconds.
const char* begins(tbb::task_arena& loader) {
  const auto begun = std::make_shared<std::promise<void>>();
  loader.enqueue([begun] { begun->set_value(); });
  return begun->get_future().wait_for(2s) == std::future_status::ready ? "begins" : "DOES NOT BEGIN";
}

// Both reads of one loader wait; another loader wants to read.
void reads_that_wait(std::size_t hosts_limit, std::size_t our_limit) {
  const Limit hosts(hosts_limit), ours(our_limit);
  tbb::task_arena waiting(kWorkers, 0), other(kWorkers, 0);
  std::atomic<bool> release{false};
  std::atomic<int> reading{0};
  for (int i = 0; i < kWorkers; ++i)
    waiting.enqueue([&] {
      reading += 1;
      release.wait(false);
      reading -= 1;
    });
  std::this_thread::sleep_for(300ms);
  const int at_once = reading;
  const char* const result = begins(other);
  std::printf("host's limit %zu, ours %zu: %d of %d reads that wait run at once; another loader's read %s\n",
              hosts_limit, our_limit, at_once, kWorkers, result);
  release = true;
  release.notify_all();
  std::this_thread::sleep_for(300ms);
  while (reading > 0) std::this_thread::yield();
}

// A launch within a task of the host's, which holds the thread that the task has.
void launch_in_a_task(std::size_t hosts_limit, std::size_t our_limit) {
  const Limit hosts(hosts_limit);
  tbb::task_arena host(1, 0);
  std::promise<const char*> result;
  host.enqueue([&] {
    const Limit ours(our_limit);
    std::thread([&] {
      tbb::task_arena loader(kWorkers, 0);
      result.set_value(begins(loader));
    }).join();
  });
  std::printf("a launch in a task, host's limit %zu, ours %zu: a loader's read %s\n", hosts_limit, our_limit,
              result.get_future().get());
  std::this_thread::sleep_for(300ms);
}

// Two loaders read in turn.
void numbers() {
  const Limit limit(2 * kWorkers + 2);
  tbb::task_arena first(kWorkers, 0), second(kWorkers, 0);
  std::mutex mutex;
  std::map<std::pair<int, int>, std::set<std::thread::id>> threads;  // by loader and the worker's number
  for (int round = 0; round < 300; ++round) {
    std::atomic<int> left{8};
    for (int i = 0; i < 8; ++i)
      (i % 2 ? first : second).enqueue([&, loader = i % 2] {
        std::this_thread::sleep_for(200us);
        {
          const std::lock_guard lock(mutex);
          threads[{loader, tbb::this_task_arena::current_thread_index()}].insert(std::this_thread::get_id());
        }
        left -= 1;
      });
    while (left > 0) std::this_thread::yield();
    std::this_thread::sleep_for(1ms);
  }
  for (const auto& [who, were] : threads)
    std::printf("loader %d, worker %d: was %zu different threads\n", who.first, who.second, were.size());
}

}  // namespace

int main() {
  for (const auto& [hosts, ours] : {std::pair<std::size_t, std::size_t>{0, 0}, {0, 6}, {1, 6}, {3, 6}})
    reads_that_wait(hosts, ours);
  for (const auto& [hosts, ours] : {std::pair<std::size_t, std::size_t>{0, 4}, {2, 4}}) launch_in_a_task(hosts, ours);
  numbers();
  std::fflush(stdout);
  std::_Exit(0);  // some reads have never begun
}
