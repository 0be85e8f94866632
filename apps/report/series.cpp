#include "series.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tandem_report {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

bool before(const Point& point, const Point& other) { return point.step < other.step; }

// Mean, least and greatest of the finite values that were added.
struct Stretch {
  double sum = 0, low = kNone, high = kNone;
  std::size_t count = 0;

  void add(double value) {
    if (!std::isfinite(value)) return;
    sum += value;
    low = std::fmin(low, value);  // the other one, where one is NaN
    high = std::fmax(high, value);
    ++count;
  }
  // Rounding, or a sum beyond the range of double, must not lead out of the band.
  double mean() const { return count == 0 ? kNone : std::clamp(sum / static_cast<double>(count), low, high); }
};

}  // namespace

void Series::cut(std::int64_t step) {
  while (!points_.empty() && points_.back().step >= step) points_.pop_back();
}

void Series::finish() {
  if (!std::is_sorted(points_.begin(), points_.end(), before)) std::stable_sort(points_.begin(), points_.end(), before);
  std::size_t kept = 0;
  for (const Point& point : points_) {
    if (kept > 0 && points_[kept - 1].step == point.step) --kept;
    points_[kept++] = point;
  }
  points_.resize(kept);
}

Thinned thin(const std::vector<Point>& points, std::size_t most) {
  Thinned thinned;
  if (points.empty()) return thinned;
  const std::int64_t first = points.front().step;
  const auto span = static_cast<std::uint64_t>(points.back().step - first) + 1;
  // Stretches of one step each, where all points fit.
  const std::uint64_t width = points.size() <= most ? 1 : (span + most - 1) / most;
  for (auto point = points.begin(); point != points.end();) {
    const std::uint64_t number = static_cast<std::uint64_t>(point->step - first) / width;
    Stretch stretch;
    std::int64_t last = point->step;
    for (; point != points.end() && static_cast<std::uint64_t>(point->step - first) / width == number; ++point) {
      stretch.add(point->value);
      last = point->step;
    }
    thinned.steps.push_back(last);
    thinned.mean.push_back(stretch.mean());
    thinned.low.push_back(stretch.low);
    thinned.high.push_back(stretch.high);
  }
  return thinned;
}

Summary summarise(const std::vector<Point>& points) {
  Stretch all;
  Summary summary{kNone, kNone, kNone, kNone, 0, 0};
  for (const Point& point : points) {
    all.add(point.value);
    if (std::isfinite(point.value))
      summary.last = point.value;
    else if (summary.not_finite++ == 0)
      summary.first_not_finite = point.step;
  }
  summary.least = all.low;
  summary.greatest = all.high;
  summary.mean = all.mean();
  return summary;
}

}  // namespace tandem_report
