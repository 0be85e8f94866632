#include "runtime/step_timing.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "backend/device_scope.h"
#include "comm/rank_group.h"

namespace tandem {

void StepTiming::measure(std::vector<double>& seconds, const std::function<void()>& step) {
  if (!open() || seconds.size() == kSteps) return step();
  synchronize(context_.device());
  const auto begin = std::chrono::steady_clock::now();
  step();
  synchronize(context_.device());
  seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

// Of the ranks' medians.
double StepTiming::slowest_rank(std::vector<double> seconds) const {
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  const auto nanoseconds = static_cast<std::uint64_t>(*middle * 1e9);
  const comm::CallRecord record{.operation = "compile_step"};
  const auto all = context_.group->meet(context_.rank, record, nanoseconds);
  return static_cast<double>(*std::max_element(all.begin(), all.end())) / 1e9;
}

void StepTiming::conclude() {
  const double called = slowest_rank(called_), replayed = slowest_rank(replayed_);
  times_ = StepTimes{called, replayed, replayed < 0.95 * called};  // a graph's memory has to be worth it
}

void StepTiming::restart() {
  called_.clear();
  replayed_.clear();
}

}  // namespace tandem
