#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "command.h"

namespace tandem_tool {
namespace {

std::stop_source stop;
std::atomic<bool> ends_by_stop{false};  // relaxed: the token is there from the beginning

// A thread that waits for signals may do what a signal handler may not.
void serve_interrupts(const sigset_t& signals) {
  for (int number = 0; sigwait(&signals, &number) == 0;)
    if (!ends_by_stop.load(std::memory_order_relaxed) || !stop.request_stop()) _exit(apps::kInterrupted);
}

}  // namespace

void catch_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // in the threads to come as well
  std::thread(serve_interrupts, signals).detach();
}

std::stop_token stop_when_interrupted() {
  ends_by_stop.store(true, std::memory_order_relaxed);
  return stop.get_token();
}

}  // namespace tandem_tool
