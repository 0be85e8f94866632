#include "data/worker_pool.h"

#include <algorithm>
#include <utility>

#include "backend/intra_op_threads.h"
#include "backend/lent_threads.h"

namespace tandem::data {

WorkerPool::WorkerPool(int threads, std::string name, CancelToken& token, std::function<void(int)> on_start)
    : token_(token), subscription_(token, [this] {
        const std::lock_guard lock(mutex_);  // so that nobody is between looking at the token and waiting
        work_.notify_all();
        for (Queue* queue : queues_) queue->changed_.notify_all();
      }) {
  const auto do_work = [this](const std::function<void()>& work) {
    try {
      work();
    } catch (...) {
      token_.cancel(std::current_exception());  // no rank is to blame
    }
  };
  const int own = on_start ? threads : 1;
  if (threads > own)
    lent_ = std::make_unique<LentThreads>(threads - own, name, own, [this, do_work] { do_work([this] { help(); }); });
  team_.emplace(ThreadTeamOptions{.size = own, .name = std::move(name)}, token,
                [this, do_work, on_start = std::move(on_start)](int index) {
                  do_work([&] {
                    set_intra_op_threads(1);  // the workers are the parallelism
                    if (on_start) on_start(index);
                    run();
                  });
                });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  lent_.reset();
  team_->join();
}

void WorkerPool::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    Queue* queue = nullptr;
    sleeping_ += 1;
    work_.wait(lock, [&] { return stopping_ || token_.cancelled() || (queue = queue_with_room()); });
    sleeping_ -= 1;
    if (stopping_ || token_.cancelled()) return;
    work_for(*queue, lock);
  }
}

// What a lent thread does: one job, so that oneTBB can give the thread to somebody else between two.
void WorkerPool::help() {
  std::unique_lock lock(mutex_);
  if (stopping_ || token_.cancelled()) return;
  if (Queue* const queue = queue_with_room()) work_for(*queue, lock);
  if (std::any_of(queues_.begin(), queues_.end(), [](const Queue* queue) { return queue->has_room(); })) wake_one();
}

// There may be work for one more thread. Whoever draws a job calls the next thread in turn.
void WorkerPool::wake_one() {
  if (sleeping_ > 0)
    work_.notify_one();
  else if (lent_)
    lent_->call();
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
  if (job) wake_one();                                // the next job may be drawn
  lock.unlock();

  if (job) {
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
  pool_->wake_one();
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
      pool_->wake_one();
    }
  }
  if (!slot) {
    pool_->token_.check();
    return Result();
  }
  if (slot->error) std::rethrow_exception(slot->error);
  return std::move(slot->result);
}

}  // namespace tandem::data
