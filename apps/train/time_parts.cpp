#include "time_parts.h"

#include <numeric>
#include <utility>

namespace train {

TimeParts TimePartsSince::take() {
  using tandem::trace::Kind;
  constexpr auto kOther = static_cast<std::size_t>(Kind::other);
  TimeParts parts{};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::chrono::nanoseconds now = recorder_.time(static_cast<Kind>(i));
    parts[i] = std::chrono::duration<double>(now - std::exchange(seen_[i], now)).count();
  }
  const auto now = Clock::now();
  const double whole = std::chrono::duration<double>(now - std::exchange(at_, now)).count();
  parts[kOther] = 0;
  parts[kOther] = whole - std::accumulate(parts.begin(), parts.end(), 0.0);
  return parts;
}

}  // namespace train
