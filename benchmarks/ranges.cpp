// ranges: what a range costs while no profiler listens, beside a range of LibTorch's (RECORD_USER_SCOPE), which tells
// LibTorch's profiler alone; in turns, medians.
#include <chrono>
#include <cstdio>
#include <functional>
#include <vector>

#include <ATen/record_function.h>

#include "measure/statistics.h"
#include "tandem/trace/range.h"

namespace {

constexpr int kRanges = 1'000'000, kRounds = 15;

double nanoseconds_a_range(const std::function<void()>& range) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kRanges; ++i) range();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / kRanges;
}

}  // namespace

int main() {
  std::vector<double> ours, of_libtorch, ratios;
  for (int round = 0; round < kRounds; ++round) {
    of_libtorch.push_back(nanoseconds_a_range([] { RECORD_USER_SCOPE("step"); }));
    ours.push_back(nanoseconds_a_range([] { const tandem::trace::Range range(tandem::trace::Event::micro_batch); }));
    ratios.push_back(ours.back() / of_libtorch.back());
  }
  std::printf("range %.1f ns   LibTorch's %.1f ns   ratio %.2f (at most 1.5)\n", measure::spread_of(ours).median,
              measure::spread_of(of_libtorch).median, measure::spread_of(ratios).median);
}
