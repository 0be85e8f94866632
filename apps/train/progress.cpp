#include "progress.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <utility>

namespace train {
namespace {

constexpr double kMemory = 3;           // seconds
constexpr double kWorthKnowing = 0.05;  // share of the time that is waited for data

std::string duration(double seconds) {
  std::array<char, 64> text;
  const auto minutes = static_cast<long long>(std::llround(seconds / 60));
  if (seconds < 99.5)
    std::snprintf(text.data(), text.size(), "%.0f s", seconds);
  else if (minutes < 60)
    std::snprintf(text.data(), text.size(), "%lld min", minutes);
  else
    std::snprintf(text.data(), text.size(), "%lld h %02lld min", minutes / 60, minutes % 60);
  return text.data();
}

// A longer line would begin a new one, which nothing removes.
std::string fit_into_terminal(std::string line) {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 && line.size() >= size.ws_col)
    line.resize(size.ws_col - 1u);
  return line;
}

}  // namespace

bool is_read(int stream) {
  pollfd its{.fd = stream, .events = POLLOUT, .revents = 0};
  return poll(&its, 1, 0) == 1;
}

void Pace::add(double seconds, std::int64_t steps, std::int64_t samples, double data_wait) {
  const double kept = std::exp(-seconds / kMemory);
  seconds_ = seconds_ * kept + seconds;
  steps_ = steps_ * kept + static_cast<double>(steps);
  samples_ = samples_ * kept + static_cast<double>(samples);
  data_wait_ = data_wait_ * kept + data_wait;
}

std::string progress_line(const Pace& pace, std::int64_t epoch, std::int64_t step, std::int64_t total_steps,
                          double loss) {
  std::array<char, 160> text;
  std::snprintf(text.data(), text.size(), "epoch %lld  step %lld/%lld  loss %.4f  %.0f samples/s  ",
                static_cast<long long>(epoch + 1), static_cast<long long>(step), static_cast<long long>(total_steps),
                loss, pace.samples_per_second());
  std::string line = text.data();
  line += duration(pace.seconds_per_step() * static_cast<double>(total_steps - step)) + " left";
  if (pace.data_wait() <= kWorthKnowing) return line;
  std::snprintf(text.data(), text.size(), "  waits for data %.0f %% of the time", 100 * pace.data_wait());
  return line + text.data();
}

Progress::Progress(bool enabled, std::int64_t total_steps, const tandem::trace::Recorder* recorder)
    : enabled_(enabled), terminal_(isatty(STDERR_FILENO) != 0), total_steps_(total_steps) {
  if (enabled && recorder) parts_.emplace(*recorder);
}

void Progress::count(std::int64_t samples) {
  steps_ += 1;
  samples_ += samples;
}

bool Progress::due() const {
  return enabled_ && seconds_since(last_) >= (terminal_ ? 0.1 : 5.0) && is_read(STDERR_FILENO);
}

void Progress::show(std::int64_t epoch, std::int64_t step, double loss) {
  last_ = Clock::now();
  const double seconds = std::chrono::duration<double>(last_ - std::exchange(paced_, last_)).count();
  const double data_wait = parts_ ? parts_->take()[static_cast<std::size_t>(tandem::trace::Kind::data_wait)] : 0;
  pace_.add(seconds, std::exchange(steps_, 0), std::exchange(samples_, 0), data_wait);
  const std::string line = progress_line(pace_, epoch, step, total_steps_, loss);
  if (terminal_)
    std::fprintf(stderr, "\r\033[K%s", fit_into_terminal(line).c_str());
  else
    std::fprintf(stderr, "%s\n", line.c_str());
  shown_ = terminal_;
}

void Progress::clear() {
  if (shown_ && is_read(STDERR_FILENO)) std::fputs("\r\033[K", stderr);
  shown_ = false;
}

}  // namespace train
