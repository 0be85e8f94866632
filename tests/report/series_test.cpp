#include <algorithm>
#include <cmath>
#include <limits>

#include "report/series.h"
#include "support/catch.h"

using tandem_report::Point;
using tandem_report::Series;
using tandem_report::summarise;
using tandem_report::thin;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<Point> of(const std::vector<double>& values) {
  std::vector<Point> points;
  for (const double value : values) points.push_back({static_cast<std::int64_t>(points.size()), value});
  return points;
}

std::vector<std::int64_t> steps_of(const Series& series) {
  std::vector<std::int64_t> steps;
  for (const Point& point : series.points()) steps.push_back(point.step);
  return steps;
}

}  // namespace

TEST_CASE("a series orders its points by step, and the last of a step stays") {
  Series series;
  for (const auto& [step, value] : std::vector<std::pair<int, double>>{{3, 1}, {1, 2}, {3, 4}, {2, 5}, {3, 6}})
    series.add(step, value);
  series.finish();
  CHECK(steps_of(series) == std::vector<std::int64_t>{1, 2, 3});
  CHECK(series.points().back().value == 6);
}

TEST_CASE("cutting a series leaves what was logged before a step") {
  Series series;
  for (int step = 0; step < 10; ++step) series.add(step, step);
  series.cut(7);
  CHECK(series.points().size() == 7);
  series.cut(100);
  CHECK(series.points().size() == 7);
  series.cut(0);
  CHECK(series.points().empty());
}

TEST_CASE("a short series is shown as it is, with its gaps") {
  const auto thinned = thin({{10, 1.0}, {1'000'000, kNaN}, {1'000'001, -2.0}}, 3);
  CHECK(thinned.steps == std::vector<std::int64_t>{10, 1'000'000, 1'000'001});
  CHECK(thinned.mean[0] == 1);
  CHECK(std::isnan(thinned.mean[1]));
  CHECK(thinned.high[2] == -2);
}

TEST_CASE("a long series is shown by mean, least and greatest of stretches of steps") {
  const auto thinned = thin(of({1, 3, kNaN, 5, 2, 2, 7}), 3);  // stretches of three steps
  CHECK(thinned.steps == std::vector<std::int64_t>{2, 5, 6});
  CHECK(thinned.mean == std::vector<double>{2, 3, 7});
  CHECK(thinned.low == std::vector<double>{1, 2, 7});
  CHECK(thinned.high == std::vector<double>{3, 5, 7});
}

TEST_CASE("thinning keeps extremes and stays within its limit at any spacing of the steps") {
  std::vector<double> values(100'000, 1.0);
  values[77'777] = 50;
  values[12'345] = -50;
  auto points = of(values);
  for (const std::size_t most : {1, 2, 999, 1000, 99'999}) {
    const auto thinned = thin(points, most);
    CAPTURE(most);
    CHECK(thinned.steps.size() <= most);
    CHECK(*std::max_element(thinned.high.begin(), thinned.high.end()) == 50);
    CHECK(*std::min_element(thinned.low.begin(), thinned.low.end()) == -50);
    CHECK(thinned.steps.back() == 99'999);
  }
  points.push_back({std::int64_t{1} << 53, 1.0});  // far away: the others share a stretch
  CHECK(thin(points, 1000).steps.size() == 2);
  CHECK(thin({}, 10).steps.empty());
}

TEST_CASE("figures are those of the finite values, and the others are counted") {
  const auto summary =
      summarise({{1, 4.0}, {2, kNaN}, {3, std::numeric_limits<double>::infinity()}, {4, 1.0}, {5, kNaN}});
  CHECK(summary.last == 1);
  CHECK(summary.least == 1);
  CHECK(summary.greatest == 4);
  CHECK(summary.mean == 2.5);
  CHECK(summary.not_finite == 3);
  CHECK(summary.first_not_finite == 2);
  CHECK(std::isnan(summarise({}).mean));
}

TEST_CASE("a sum beyond the range of double leaves a mean within the values") {
  CHECK(summarise({{1, 1.5e308}, {2, 1.6e308}}).mean <= 1.6e308);
}
