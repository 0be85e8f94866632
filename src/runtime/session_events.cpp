#include "runtime/session_events.h"

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
      call = nullptr;  // what it holds goes before the lock is taken
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
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->ended = true;
    queue_->changed.notify_all();
  }
  if (thread_.get_id() == std::this_thread::get_id())
    thread_.detach();  // it ends as soon as it comes back from here
  else
    thread_.join();
}

void CallingThread::call(std::function<void()> function) {
  const std::lock_guard lock(queue_->mutex);
  queue_->calls.push_back(std::move(function));
  queue_->changed.notify_all();
}

// Outlives the session for as long as an executor holds calls of it.
struct SessionEvents::Inbox {
  struct Entry {
    std::optional<SessionEvent> event;  // nothing: a call
    std::function<void()> call;
  };

  Executor executor;
  std::function<void(const SessionEvent&)> on_event;
  std::function<void(std::exception_ptr)> failed;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Entry> entries;
  bool scheduled = false;  // a call of `deliver` is with the executor, or runs
  bool closed = false;
  std::thread::id delivering;  // the thread in a callback; none: nobody is

  // True when nobody is to deliver it yet.
  bool add(Entry entry) {
    const std::lock_guard lock(mutex);
    entries.push_back(std::move(entry));
    return !std::exchange(scheduled, true);
  }

  // Steps and epochs are replaced by later ones.
  bool add(SessionEvent event) {
    const std::lock_guard lock(mutex);
    const auto replaceable = event.kind == SessionEvent::Kind::step || event.kind == SessionEvent::Kind::epoch;
    const auto same = [&](const Entry& entry) { return entry.event && entry.event->kind == event.kind; };
    if (const auto old = std::find_if(entries.begin(), entries.end(), same); replaceable && old != entries.end()) {
      event.left_out = old->event->left_out + 1;
      entries.erase(old);
    }
    entries.push_back({std::move(event), {}});
    return !std::exchange(scheduled, true);
  }

  static void schedule(const std::shared_ptr<Inbox>& inbox) {
    if (!inbox->executor) return inbox->deliver();
    try {
      inbox->executor([inbox] { inbox->deliver(); });
    } catch (...) {
      inbox->failed(std::current_exception());
    }
  }

  void deliver() {
    std::unique_lock lock(mutex);
    while (!closed && !entries.empty()) {
      const Entry entry = std::move(entries.front());
      entries.pop_front();
      delivering = std::this_thread::get_id();
      lock.unlock();
      std::exception_ptr error;
      try {
        entry.event ? on_event(*entry.event) : entry.call();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error && !closed) {  // not when the callback has destroyed the session
        lock.unlock();
        failed(error);
        lock.lock();
      }
      delivering = {};
      changed.notify_all();
    }
    scheduled = false;
  }
};

SessionEvents::SessionEvents(const SessionOptions& options, std::function<void(std::exception_ptr)> failed)
    : inbox_(std::make_shared<Inbox>()) {
  inbox_->executor = options.executor;
  inbox_->on_event = options.on_event;
  inbox_->failed = std::move(failed);
}

SessionEvents::~SessionEvents() {
  std::unique_lock lock(inbox_->mutex);
  inbox_->closed = true;
  inbox_->entries.clear();
  inbox_->changed.wait(lock, [this] {
    return inbox_->delivering == std::thread::id() || inbox_->delivering == std::this_thread::get_id();
  });
}

void SessionEvents::post(SessionEvent event) {
  if (!inbox_->on_event) return;
  if (inbox_->add(std::move(event))) thread_.call([inbox = inbox_] { Inbox::schedule(inbox); });
}

void SessionEvents::post(std::function<void()> call) {
  if (inbox_->add({std::nullopt, std::move(call)})) thread_.call([inbox = inbox_] { Inbox::schedule(inbox); });
}

}  // namespace tandem
