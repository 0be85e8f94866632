#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

namespace measure {

struct Spread {
  double min, median, max;
};

/// Of at least one value; of an even number the upper one of the two in the middle is the median.
inline Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values.front(), values[values.size() / 2], values.back()};
}

/// How long `work` takes.
inline double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace measure
