#include "core/thread_team.h"

#include <pthread.h>
#include <sched.h>

#include <system_error>
#include <utility>

#include "core/time_slice.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

void pin_this_thread(const std::vector<int>& cores) {
  if (cores.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores) CPU_SET(core, &set);
  // A core that has gone offline meanwhile is no reason not to train.
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

}  // namespace

ThreadTeam::ThreadTeam(ThreadTeamOptions options, CancelToken& token, std::function<void(int)> body)
    : options_(std::move(options)),
      token_(token),
      body_(std::move(body)),
      running_(options_.size),
      subscription_(token, [this] {
        const std::lock_guard lock(mutex_);
        ended_.notify_all();
      }) {
  try {
    threads_.reserve(static_cast<std::size_t>(options_.size));
    for (int index = 0; index < options_.size; ++index) threads_.emplace_back([this, index] { run(index); });
  } catch (const std::system_error& error) {
    const Error problem("cannot start thread " + std::to_string(threads_.size()) + " of " +
                        std::to_string(options_.size) + ": " + error.what());
    token_.cancel(std::make_exception_ptr(problem));
    join();
    throw problem;
  }
}

ThreadTeam::~ThreadTeam() {
  if (!wait_for(std::chrono::nanoseconds(0)))
    token_.cancel(std::make_exception_ptr(Cancelled("the thread team was destroyed")));
  join();
}

void ThreadTeam::run(int index) {
  // Linux shows the first 15 characters.
  pthread_setname_np(pthread_self(), (options_.name + ' ' + std::to_string(index)).substr(0, 15).c_str());
  if (static_cast<std::size_t>(index) < options_.cores.size())
    pin_this_thread(options_.cores[static_cast<std::size_t>(index)]);
  ask_for_short_slices();
  try {
    body_(index);
  } catch (...) {
    token_.cancel(std::current_exception(), index);
  }
  // Notified under the lock: the team may be destroyed as soon as the waiting thread sees 0.
  const std::lock_guard lock(mutex_);
  running_ -= 1;
  ended_.notify_all();
}

bool ThreadTeam::wait_for(std::chrono::nanoseconds time) {
  std::unique_lock lock(mutex_);
  ended_.wait_for(lock, time, [this] { return running_ == 0 || token_.cancelled(); });
  return running_ == 0;
}

void ThreadTeam::abandon(int index) {
  threads_[static_cast<std::size_t>(index)].detach();
  const std::lock_guard lock(mutex_);
  running_ -= 1;
}

void ThreadTeam::join() {
  for (auto& thread : threads_)
    if (thread.joinable()) thread.join();
}

}  // namespace tandem
