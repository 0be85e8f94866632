// call_checking: what it costs that every collective call is described, published and compared between the ranks. Calls
// of two ranks that exchange 8 bytes, beside threads that only wait for each other; in turns, medians.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

#include <ATen/Functions.h>

#include "comm/describe_call.h"
#include "comm/rank_group.h"
#include "measure/statistics.h"

namespace {

constexpr int kCalls = 200'000, kRounds = 15;

using namespace tandem;

// Seconds a call of `calls(rank)`, which makes kCalls.
double seconds_a_call(const std::function<void(int)>& calls) {
  std::thread other([&] { calls(1); });
  const auto start = std::chrono::steady_clock::now();
  calls(0);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  other.join();
  return time.count() / kCalls;
}

double bare() {
  struct alignas(128) Line {
    std::atomic<std::uint64_t> calls{0};
  };
  Line lines[2];
  return seconds_a_call([&](int rank) {
    for (std::uint64_t call = 1; call <= kCalls; ++call) {
      lines[rank].calls.store(call, std::memory_order_seq_cst);
      while (lines[1 - rank].calls.load(std::memory_order_acquire) < call) {
      }
    }
  });
}

double checked(const at::Tensor& tensor) {
  CancelToken token;
  comm::RankGroup group(2, token);
  return seconds_a_call([&](int rank) {
    for (int call = 0; call < kCalls; ++call) group.meet(rank, comm::describe_call("all_reduce", tensor));
  });
}

}  // namespace

int main() {
  const at::Tensor tensor = at::zeros({16, 16});
  std::vector<double> with, without, difference;
  for (int round = 0; round < kRounds; ++round) {
    with.push_back(checked(tensor));
    without.push_back(bare());
    difference.push_back(with.back() - without.back());
  }
  std::printf("checked call %.3f us   bare wait %.3f us   checking %.3f us (at most 0.2)\n",
              measure::spread_of(with).median * 1e6, measure::spread_of(without).median * 1e6,
              measure::spread_of(difference).median * 1e6);
}
