#pragma once

#include <algorithm>
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

}  // namespace measure
