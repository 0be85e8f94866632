#include "tandem/core/worker_pool.h"

#include <algorithm>
#include <utility>

namespace tandem {

WorkerPool::WorkerPool(int threads, std::string name, CancelToken& token, std::function<void(int)> on_start)
    : token_(token), subscription_(token, [this] {
        const std::lock_guard lock(mutex_);  // so that nobody is between looking at the token and waiting
        work_.notify_all();
        for (Queue* queue : queues_) queue->changed_.notify_all();
      }) {
  team_.emplace(ThreadTeamOptions{.size = threads, .name = std::move(name)}, token,
                [this, on_start = std::move(on_start)](int index) {
                  try {
                    if (on_start) on_start(index);
                    run();
                  } catch (...) {
                    token_.cancel(std::current_exception());  // no rank is to blame
                  }
                });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  team_->join();
}

void WorkerPool::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    Queue* queue = nullptr;
    work_.wait(lock, [&] { return stopping_ || token_.cancelled() || (queue = queue_with_room()); });
    if (stopping_ || token_.cancelled()) return;
    work_for(*queue, lock);
  }
}

WorkerPool::Queue* WorkerPool::queue_with_room() {
  const auto found = std::find_if(queues_.begin(), queues_.end(), [](Queue* queue) { return queue->has_room(); });
  if (found == queues_.end()) return nullptr;
  queues_.splice(queues_.end(), queues_, found);  // the others come first next time
  return queues_.back();
}

// The queue cannot go away meanwhile: its destructor waits for what runs.
void WorkerPool::work_for(Queue& queue, std::unique_lock<std::mutex>& lock) {
  const auto slot = std::make_shared<Queue::Slot>();
  queue.slots_.push_back(slot);
  queue.drawing_ = true;
  queue.running_ += 1;
  lock.unlock();
  const WorkScope scope(token_, &queue.gone_);

  Job job;
  try {
    job = queue.next_();
  } catch (...) {
    slot->error = std::current_exception();
  }
  lock.lock();
  queue.drawing_ = false;
  if (!job) queue.ended_ = true;
  if (!job && !slot->error) queue.slots_.pop_back();  // still the last: nobody else draws meanwhile
  lock.unlock();

  if (job) {
    work_.notify_one();  // the next job may be drawn
    try {
      slot->result = job();
    } catch (...) {
      slot->error = std::current_exception();
    }
    job = nullptr;  // gives back what it holds before anybody knows that it is done
  }
  lock.lock();
  slot->done = true;
  queue.running_ -= 1;
  queue.changed_.notify_all();
}

WorkerPool::Queue::Queue(std::shared_ptr<WorkerPool> pool, std::size_t depth, bool in_order, std::function<Job()> next)
    : pool_(std::move(pool)), depth_(depth), in_order_(in_order), next_(std::move(next)) {
  const std::lock_guard lock(pool_->mutex_);
  pool_->queues_.push_back(this);
  pool_->work_.notify_all();
}

WorkerPool::Queue::~Queue() {
  gone_.store(true, std::memory_order_relaxed);
  std::unique_lock lock(pool_->mutex_);
  ended_ = true;
  changed_.wait(lock, [this] { return running_ == 0; });
  pool_->queues_.remove(this);
}

WorkerPool::Queue::Slots::iterator WorkerPool::Queue::finished() {
  if (in_order_) return !slots_.empty() && slots_.front()->done ? slots_.begin() : slots_.end();
  return std::find_if(slots_.begin(), slots_.end(), [](const auto& slot) { return slot->done; });
}

bool WorkerPool::Queue::ready() {
  const std::lock_guard lock(pool_->mutex_);
  return finished() != slots_.end() || (ended_ && slots_.empty());
}

std::optional<WorkerPool::Result> WorkerPool::Queue::take(std::optional<std::chrono::nanoseconds> timeout) {
  std::shared_ptr<Slot> slot;
  {
    std::unique_lock lock(pool_->mutex_);
    const auto settled = [this] {
      return finished() != slots_.end() || (ended_ && slots_.empty()) || pool_->token_.cancelled();
    };
    if (!timeout)
      changed_.wait(lock, settled);
    else if (!changed_.wait_for(lock, *timeout, settled))
      return std::nullopt;
    if (const auto found = finished(); found != slots_.end()) {
      slot = std::move(*found);
      slots_.erase(found);
      pool_->work_.notify_one();
    }
  }
  if (!slot) {
    pool_->token_.check();
    return Result();
  }
  if (slot->error) std::rethrow_exception(slot->error);
  return std::move(slot->result);
}

}  // namespace tandem
