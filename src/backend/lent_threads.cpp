#include "backend/lent_threads.h"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include <ATen/Parallel.h>

#include "backend/intra_op_threads.h"

namespace tandem {
namespace {

constexpr auto kLimit = tbb::global_control::max_allowed_parallelism;

// While alive, the calling thread has another name.
class NameScope {
 public:
  explicit NameScope(const std::string& name) {
    pthread_getname_np(pthread_self(), before_.data(), before_.size());
    pthread_setname_np(pthread_self(), name.substr(0, before_.size() - 1).c_str());
  }
  ~NameScope() { pthread_setname_np(pthread_self(), before_.data()); }
  NameScope(const NameScope&) = delete;
  NameScope& operator=(const NameScope&) = delete;

 private:
  std::array<char, 16> before_{};  // what Linux has room for
};

// While alive, LibTorch's operators have one intra-op thread on the calling thread.
class AloneScope {
 public:
  AloneScope() { set_intra_op_threads(1); }
  ~AloneScope() { set_intra_op_threads(before_); }
  AloneScope(const AloneScope&) = delete;
  AloneScope& operator=(const AloneScope&) = delete;

 private:
  const int before_ = at::get_num_threads();
};

// There is one limit for all that want a higher one at the same time, since oneTBB takes the lowest. A launch may still
// be running when the process ends, so it is never destroyed.
struct Limit {
  std::mutex mutex;
  std::size_t before = 0;  // what the process had when nobody wanted more
  int more = 0;
  std::unique_ptr<tbb::global_control> control;
};

void raise_limit(int by) {
  static Limit& limit = *new Limit;
  const std::lock_guard lock(limit.mutex);
  if (limit.more == 0) limit.before = tbb::global_control::active_value(kLimit);
  limit.more += by;
  // The new one first: without any the threads would be sent away.
  limit.control = limit.more == 0 ? nullptr
                                  : std::make_unique<tbb::global_control>(
                                        kLimit, limit.before + static_cast<std::size_t>(limit.more));
}

// While alive, oneTBB has `more` threads more than it had, but for a limit that the process sets itself.
class RaisedLimit {
 public:
  explicit RaisedLimit(int more) : more_(more) { raise_limit(more_); }
  ~RaisedLimit() {
    try {
      raise_limit(-more_);
    } catch (...) {  // no memory for a lower one: the higher stays until the next change
    }
  }
  RaisedLimit(const RaisedLimit&) = delete;
  RaisedLimit& operator=(const RaisedLimit&) = delete;

  // Beside one that asks. Whoever asks for more has oneTBB print a warning. It has at least 256 where it is allowed to.
  int threads() const {
    return static_cast<int>(std::min<std::size_t>(tbb::global_control::active_value(kLimit), 256)) - 1;
  }

 private:
  const int more_;
};

// Shared with the calls that threads have not come for, which may be longer there than all else.
struct Calls {
  std::string name;
  int first;
  std::function<void()> work;
  std::mutex mutex;  // guards all below
  std::condition_variable came_back;
  int most = 0;
  int called = 0;
  int working = 0;
  bool ended = false;
};

void come(Calls& calls) {
  {
    const std::lock_guard lock(calls.mutex);
    calls.called -= 1;
    if (calls.ended) return;
    calls.working += 1;
  }
  {
    const int index = calls.first + tbb::this_task_arena::current_thread_index();
    const NameScope name(calls.name + ' ' + std::to_string(index));
    const AloneScope alone;
    // Where `work` uses oneTBB itself and waits, it must not be given another call meanwhile.
    tbb::this_task_arena::isolate([&] { calls.work(); });
  }
  const std::lock_guard lock(calls.mutex);
  calls.working -= 1;
  calls.came_back.notify_all();
}

}  // namespace

struct LentThreads::Parts {
  explicit Parts(int most) : limit(most) {}

  RaisedLimit limit;
  std::shared_ptr<Calls> calls = std::make_shared<Calls>();
  std::optional<tbb::task_arena> arena;  // none: the process allows no threads
};

LentThreads::LentThreads(int most, std::string name, int first, std::function<void()> work)
    : parts_(std::make_unique<Parts>(most)) {
  Calls& calls = *parts_->calls;
  calls.name = std::move(name);
  calls.first = first;
  calls.work = std::move(work);
  calls.most = std::min(most, parts_->limit.threads());
  if (calls.most > 0) parts_->arena.emplace(calls.most, 0);
}

LentThreads::~LentThreads() {
  Calls& calls = *parts_->calls;
  std::unique_lock lock(calls.mutex);
  calls.ended = true;
  calls.came_back.wait(lock, [&] { return calls.working == 0; });
}

void LentThreads::call() noexcept {
  const std::shared_ptr<Calls>& calls = parts_->calls;
  {
    const std::lock_guard lock(calls->mutex);
    if (calls->called == calls->most) return;
    calls->called += 1;
  }
  try {
    const NameScope name("tbb");  // which a thread that oneTBB starts now inherits for good, idle or not
    parts_->arena->enqueue([calls] { come(*calls); });
  } catch (...) {  // no memory for it: the others do it all
    const std::lock_guard lock(calls->mutex);
    calls->called -= 1;
  }
}

}  // namespace tandem
