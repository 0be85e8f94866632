#include "session/end_at_exit.h"

#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <vector>

#include "runtime/rank_context.h"
#include "session/session_run.h"

namespace tandem {
namespace {

struct Runs {
  std::mutex mutex;
  std::vector<std::weak_ptr<SessionRun>> all;
  ::pid_t process = ::getpid();
};

// Never destroyed: sessions that are static objects may end later.
Runs& runs() {
  static Runs& runs = *new Runs;
  return runs;
}

void end_all() {
  if (::getpid() != runs().process) return;  // in a forked child, which has none of their threads
  std::vector<std::shared_ptr<SessionRun>> alive;
  {
    const std::lock_guard lock(runs().mutex);
    for (const auto& weak : runs().all)
      if (auto run = weak.lock()) alive.push_back(std::move(run));
  }
  for (const auto& run : alive) run->cancel();
  for (const auto& run : alive) {
    if (current_rank())
      run->wait_for_other_ranks();  // a body has called exit, and would wait for itself
    else
      run->wait_until({});
  }
}

}  // namespace

void end_at_exit(const std::shared_ptr<SessionRun>& run) {
  static std::once_flag once;
  std::call_once(once, [] { std::atexit(end_all); });
  const std::lock_guard lock(runs().mutex);
  std::erase_if(runs().all, [](const auto& weak) { return weak.expired(); });
  runs().all.push_back(run);
}

void outlive_what_was_made() noexcept {
  static std::once_flag once;
  std::call_once(once, [] { std::atexit(end_all); });
}

}  // namespace tandem
