#include "progress.h"

#include <unistd.h>

#include <cstdio>

namespace train {

Progress::Progress(bool enabled, std::int64_t total_steps)
    : enabled_(enabled), terminal_(isatty(STDERR_FILENO) != 0), total_steps_(total_steps) {}

bool Progress::due() const { return enabled_ && seconds_since(last_) >= (terminal_ ? 0.1 : 5.0); }

void Progress::show(std::int64_t epoch, std::int64_t step, double loss, double samples_per_second) {
  const double left = seconds_since(start_) / static_cast<double>(step) * static_cast<double>(total_steps_ - step);
  std::fprintf(stderr, "%sepoch %lld  step %lld/%lld  loss %.4f  %.0f samples/s  %.0f s left%s",
               terminal_ ? "\r\033[K" : "", static_cast<long long>(epoch + 1), static_cast<long long>(step),
               static_cast<long long>(total_steps_), loss, samples_per_second, left, terminal_ ? "" : "\n");
  last_ = Clock::now();
  shown_ = terminal_;
}

void Progress::clear() {
  if (shown_) std::fputs("\r\033[K", stderr);
  shown_ = false;
}

}  // namespace train
