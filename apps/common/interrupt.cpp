#include "common/interrupt.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "common/program.h"

namespace apps {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSameRequest = std::chrono::seconds(1);
constexpr std::array kSignals{std::pair{SIGINT, "SIGINT"},   std::pair{SIGTERM, "SIGTERM"},
                              std::pair{SIGHUP, "SIGHUP"},   std::pair{SIGUSR1, "SIGUSR1"},
                              std::pair{SIGUSR2, "SIGUSR2"}, std::pair{SIGXCPU, "SIGXCPU"}};

std::string name_of(int signal) {
  for (const auto& [number, name] : kSignals)
    if (number == signal) return name;
  return std::to_string(signal);
}

int kind_of(int signal) { return signal == SIGINT ? SIGTERM : signal; }

class Interrupts {
 public:
  explicit Interrupts(std::string program) : program_(std::move(program)) {}

  void serve(const sigset_t& signals) {
    for (int number = 0; sigwait(&signals, &number) == 0;) take(number);
  }

  std::stop_token stop_instead(std::function<std::string()> cost, bool announces) {
    const std::lock_guard lock(mutex_);
    cost_ = std::move(cost);
    announces_ = announces;
    return stop_.get_token();
  }

  void before_end(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    before_end_ = std::move(work);
  }

  bool requested() const { return stop_.stop_requested(); }

 private:
  void take(int signal) {
    const std::lock_guard lock(mutex_);
    if (!cost_) end("interrupted by " + name_of(signal));
    const auto now = Clock::now();
    const auto [first, is_first] = first_.try_emplace(kind_of(signal), now);
    if (!is_first && signal != SIGXCPU && now - first->second >= kSameRequest)
      end(name_of(signal) + " again: ends at once; lost: " + cost_());
    if (stop_.request_stop() && announces_)
      say(name_of(signal) + ": stops at the next step; another one, a second from now, ends at once");
  }

  [[noreturn]] void end(const std::string& text) const {
    say(text);
    if (before_end_) before_end_();
    _exit(kInterrupted);
  }

  // Not through stdio, whose lock a thread may hold that waits for a full pipe.
  void say(const std::string& text) const {
    const std::string line = (isatty(STDERR_FILENO) != 0 ? "\r\033[K" : "") + program_ + ": " + text + "\n";
    pollfd error{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
    if (::poll(&error, 1, 0) == 1 && ::write(STDERR_FILENO, line.data(), line.size()) < 0) return;  // nobody reads it
  }

  const std::string program_;
  std::mutex mutex_;                   // guards the next four
  std::function<void()> before_end_;   // may be empty
  std::function<std::string()> cost_;  // empty: a signal ends the process
  bool announces_ = false;
  std::map<int, Clock::time_point> first_;  // by kind
  std::stop_source stop_;
};

Interrupts* interrupts = nullptr;  // never deleted: its thread ends with the process

}  // namespace

void catch_signals(const std::string& program) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const auto& [number, name] : kSignals) {
    struct sigaction action {};
    if (sigaction(number, nullptr, &action) == 0 && action.sa_handler != SIG_IGN) sigaddset(&signals, number);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  interrupts = new Interrupts(program);
  std::thread([signals] { interrupts->serve(signals); }).detach();
}

std::stop_token stop_at_signals(std::function<std::string()> cost, bool announces) {
  return interrupts->stop_instead(std::move(cost), announces);
}

void before_end_by_signal(std::function<void()> work) {
  if (interrupts) interrupts->before_end(std::move(work));
}

bool interrupted() { return interrupts && interrupts->requested(); }

}  // namespace apps
