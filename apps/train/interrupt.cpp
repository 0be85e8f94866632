#include "interrupt.h"

#include <unistd.h>
#include <atomic>
#include <csignal>

namespace train {
namespace {

std::atomic<bool> stop_asked{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may only use lock-free atomics");

void on_signal(int) {
  // relaxed: nothing else is handed over.
  if (stop_asked.exchange(true, std::memory_order_relaxed)) _exit(130);
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return stop_asked.load(std::memory_order_relaxed); }

}  // namespace train
