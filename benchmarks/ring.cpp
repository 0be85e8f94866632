// ring: SpscRing between two threads, beside a ring that can do nothing but pass items on: it neither sleeps nor ends.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "core/spsc_ring.h"
#include "measure/statistics.h"

namespace {

constexpr std::size_t kCapacity = 1024;
constexpr int kRuns = 5;

// The least that passes items between two threads. Source: E. Rigtorp, SPSCQueue.
class BareRing {
 public:
  void push(std::int64_t value) {
    const std::size_t tail = tail_.load(std::memory_order_relaxed);
    while (tail - head_seen_ == kCapacity) head_seen_ = head_.load(std::memory_order_acquire);
    slots_[tail % kCapacity] = value;
    tail_.store(tail + 1, std::memory_order_release);
  }
  std::int64_t pop() {
    const std::size_t head = head_.load(std::memory_order_relaxed);
    while (head == tail_seen_) tail_seen_ = tail_.load(std::memory_order_acquire);
    const std::int64_t value = slots_[head % kCapacity];
    head_.store(head + 1, std::memory_order_release);
    return value;
  }

 private:
  std::vector<std::int64_t> slots_ = std::vector<std::int64_t>(kCapacity);
  alignas(64) std::atomic<std::size_t> tail_{0};
  std::size_t head_seen_ = 0;
  alignas(64) std::atomic<std::size_t> head_{0};
  std::size_t tail_seen_ = 0;
};

class Ring {
 public:
  void push(std::int64_t value) { ring_.push(value); }
  std::int64_t pop() { return *ring_.pop(); }

 private:
  tandem::CancelToken token_;
  tandem::SpscRing<std::int64_t> ring_{kCapacity, token_};
};

// Seconds in which `here` runs while `there` runs on another thread.
template <class There, class Here>
double seconds_of(There there, Here here) {
  const auto start = std::chrono::steady_clock::now();
  std::thread thread(there);
  here();
  thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class AnyRing>
double million_items_per_second() {
  constexpr std::int64_t kItems = 20'000'000;
  AnyRing ring;
  std::int64_t sum = 0;
  const double seconds = seconds_of(
      [&] {
        for (std::int64_t i = 0; i < kItems; ++i) ring.push(i);
      },
      [&] {
        for (std::int64_t i = 0; i < kItems; ++i) sum += ring.pop();
      });
  if (sum != kItems * (kItems - 1) / 2) std::printf("an item was LOST\n");
  return kItems / seconds / 1e6;
}

template <class AnyRing>
double round_trip_ns() {
  constexpr int kTrips = 500'000;
  AnyRing there, back;
  const double seconds = seconds_of(
      [&] {
        for (int i = 0; i < kTrips; ++i) back.push(there.pop());
      },
      [&] {
        for (int i = 0; i < kTrips; ++i) {
          there.push(i);
          back.pop();
        }
      });
  return seconds / kTrips * 1e9;
}

// Medians of runs in turn.
void compare(const char* what, double (*ring)(), double (*bare)()) {
  std::vector<double> ours, theirs;
  for (int run = 0; run < kRuns; ++run) {
    ours.push_back(ring());
    theirs.push_back(bare());
  }
  std::printf("%-24s %8.1f   bare ring %8.1f\n", what, measure::spread_of(ours).median,
              measure::spread_of(theirs).median);
}

}  // namespace

int main() {
  compare("million items/s", million_items_per_second<Ring>, million_items_per_second<BareRing>);
  compare("round trip, ns", round_trip_ns<Ring>, round_trip_ns<BareRing>);
}
