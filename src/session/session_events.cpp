#include "session/session_events.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>

#include "tandem/core/error.h"

namespace tandem {

struct CallingThread::Queue {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> calls;
  bool ended = false;

  void add(std::function<void()> call) {
    const std::lock_guard lock(mutex);
    if (ended) return;
    calls.push_back(std::move(call));
    changed.notify_all();
  }

  void run() {
    pthread_setname_np(pthread_self(), "session events");
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return ended || !calls.empty(); });
      if (ended) return;
      auto call = std::move(calls.front());
      calls.pop_front();
      lock.unlock();
      call();
      call = nullptr;  // what it holds is not destroyed under the lock
      lock.lock();
    }
  }
};

CallingThread::CallingThread() : queue_(std::make_shared<Queue>()) {
  try {
    thread_ = std::thread([queue = queue_] { queue->run(); });
  } catch (const std::system_error& error) {
    throw Error(std::string("cannot start a session's thread: ") + error.what());
  }
}

CallingThread::~CallingThread() {
  std::deque<std::function<void()>> left;
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->ended = true;
    left.swap(queue_->calls);
    queue_->changed.notify_all();
  }
  if (thread_.get_id() == std::this_thread::get_id())
    thread_.detach();  // it ends as soon as it comes back from here
  else
    thread_.join();
}

void CallingThread::call(std::function<void()> function) { queue_->add(std::move(function)); }

// Outlives the session for as long as an executor holds calls of it.
struct SessionEvents::Inbox : std::enable_shared_from_this<Inbox> {
  struct Entry {
    std::optional<SessionEvent> event;  // nothing: a call
    std::function<void()> call;
    OnError on_error;
  };

  Executor executor;
  std::function<void(const SessionEvent&)> on_event;
  bool every_epoch = false;
  std::shared_ptr<CallingThread::Queue> queue;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Entry> entries;
  bool scheduled = false;  // a call of `deliver` is on its way, or runs
  bool closed = false;
  std::thread::id delivering;  // the thread in a callback; none: nobody is

  bool is_replaced_by_later(SessionEvent::Kind kind) const {
    return kind == SessionEvent::Kind::step || (kind == SessionEvent::Kind::epoch && !every_epoch);
  }

  void add(Entry entry) {
    std::optional<Entry> replaced;
    const std::lock_guard lock(mutex);
    if (closed) return;
    const auto is_replaced = [&](const Entry& other) { return other.event && other.event->kind == entry.event->kind; };
    if (entry.event && is_replaced_by_later(entry.event->kind))
      if (const auto old = std::find_if(entries.begin(), entries.end(), is_replaced); old != entries.end()) {
        entry.event->left_out = old->event->left_out + 1;
        replaced = std::move(*old);
        entries.erase(old);
      }
    entries.push_back(std::move(entry));
    if (!std::exchange(scheduled, true)) schedule();
  }

  // On the session's own thread: an executor may take its time.
  void schedule() {
    queue->add([self = shared_from_this()] {
      if (!self->executor) return self->deliver();
      try {
        self->executor([self] { self->deliver(); });
      } catch (...) {
        self->executor_failed(std::current_exception());
      }
    });
  }

  void executor_failed(const std::exception_ptr& error) {
    std::deque<Entry> lost;
    {
      const std::lock_guard lock(mutex);
      scheduled = false;
      lost.swap(entries);
    }
    if (!lost.empty()) lost.front().on_error(error);
  }

  // One entry: others of the host's calls have their turn in between.
  void deliver() {
    std::unique_lock lock(mutex);
    if (closed || entries.empty()) {
      scheduled = false;
      return;
    }
    std::optional<Entry> entry = std::move(entries.front());
    entries.pop_front();
    delivering = std::this_thread::get_id();
    lock.unlock();
    std::exception_ptr error;
    try {
      entry->event ? on_event(*entry->event) : entry->call();
    } catch (...) {
      error = std::current_exception();
    }
    if (error) entry->on_error(error);
    entry.reset();
    lock.lock();
    delivering = {};
    changed.notify_all();
    scheduled = !closed && !entries.empty();
    if (scheduled) schedule();
  }
};

SessionEvents::SessionEvents(const SessionOptions& options) : inbox_(std::make_shared<Inbox>()) {
  inbox_->executor = options.executor;
  inbox_->on_event = options.on_event;
  inbox_->every_epoch = options.every_epoch;
  inbox_->queue = thread_.queue_;
}

SessionEvents::~SessionEvents() { close(); }

void SessionEvents::close() {
  std::deque<Inbox::Entry> left;
  std::unique_lock lock(inbox_->mutex);
  inbox_->closed = true;
  left.swap(inbox_->entries);
  inbox_->changed.wait(lock, [this] {
    return inbox_->delivering == std::thread::id() || inbox_->delivering == std::this_thread::get_id();
  });
  lock.unlock();
}

void SessionEvents::post(SessionEvent event, OnError on_error) {
  if (inbox_->on_event) inbox_->add({std::move(event), {}, std::move(on_error)});
}

void SessionEvents::post(std::function<void()> call, OnError on_error) {
  inbox_->add({std::nullopt, std::move(call), std::move(on_error)});
}

}  // namespace tandem
