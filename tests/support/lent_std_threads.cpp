// LentThreads of the standard library's, for ThreadSanitizer, which does not see into oneTBB: each call makes a thread,
// which comes after the others or before them, as it happens. And no LibTorch.
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "backend/intra_op_threads.h"
#include "backend/lent_threads.h"

namespace tandem {

void set_intra_op_threads(int) {}

struct LentThreads::Parts {
  std::size_t most = 0;
  std::function<void()> work;
  std::mutex mutex;  // guards all below
  std::condition_variable came_back;
  std::size_t called = 0, working = 0;
  bool ended = false;
  std::vector<std::jthread> threads = {};
};

LentThreads::LentThreads(int most, std::string, int, std::function<void()> work) : parts_(std::make_unique<Parts>()) {
  parts_->most = static_cast<std::size_t>(most);
  parts_->work = std::move(work);
}

LentThreads::~LentThreads() {
  {
    std::unique_lock lock(parts_->mutex);
    parts_->ended = true;
    parts_->came_back.wait(lock, [this] { return parts_->working == 0; });
  }
  parts_->threads.clear();  // joins; nobody calls any more
}

void LentThreads::call() noexcept {
  const std::lock_guard lock(parts_->mutex);
  if (parts_->called == parts_->most) return;
  parts_->called += 1;
  parts_->threads.emplace_back([&parts = *parts_] {
    std::unique_lock lock(parts.mutex);
    parts.came_back.wait(lock, [&] { return parts.working < parts.most; });
    parts.called -= 1;
    if (parts.ended) return;
    parts.working += 1;
    lock.unlock();
    parts.work();
    lock.lock();
    parts.working -= 1;
    parts.came_back.notify_all();
  });
}

}  // namespace tandem
