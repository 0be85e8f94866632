#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tandem_report {

struct Point {
  std::int64_t step;
  double value;  ///< NaN: logged, but not finite
};

/// Values of a name, by step.
class Series {
 public:
  void add(std::int64_t step, double value) { points_.push_back({step, value}); }
  /// Forgets the newest points, as far back as they are at `step` or later.
  void cut(std::int64_t step);
  /// Orders the points by step; of several at one step the last stays. To be called before `points` is read.
  void finish();
  const std::vector<Point>& points() const { return points_; }

 private:
  std::vector<Point> points_;
};

/// What a plot shows of a series: a point for each stretch of steps. Stretches with no finite value have NaN.
struct Thinned {
  std::vector<std::int64_t> steps;  ///< the last of each stretch
  std::vector<double> mean, low, high;
};

/// At most `most` stretches of equally many steps; a series of no more points is left as it is. `points` as
/// Series::finish leaves them.
Thinned thin(const std::vector<Point>& points, std::size_t most);

/// Figures of all finite values of a series; NaN where there are none.
struct Summary {
  double last, least, greatest, mean;
  std::size_t not_finite;
  std::int64_t first_not_finite;  ///< its step, if there are any
};

Summary summarise(const std::vector<Point>& points);

}  // namespace tandem_report
