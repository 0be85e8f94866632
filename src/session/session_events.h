// How a session calls back.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <thread>

#include "tandem/session/session.h"

namespace tandem {

/// A thread that calls functions one after the other.
class CallingThread {
 public:
  /// Throws Error when the system has no more threads.
  CallingThread();

  /// Ends the thread after the call that it is in, and waits for that, unless it is the caller.
  ~CallingThread();
  CallingThread(const CallingThread&) = delete;
  CallingThread& operator=(const CallingThread&) = delete;

  void call(std::function<void()> function);

 private:
  friend class SessionEvents;
  struct Queue;
  std::shared_ptr<Queue> queue_;
  std::thread thread_;
};

/// Brings events and other calls to the host's functions, in order, one at a time, and without waiting for them.
class SessionEvents {
 public:
  /// Hears what a callback throws, on the callback's thread.
  using OnError = std::function<void(std::exception_ptr)>;

  /// Throws Error when the system has no more threads.
  explicit SessionEvents(const SessionOptions& options);

  ~SessionEvents();
  SessionEvents(const SessionEvents&) = delete;
  SessionEvents& operator=(const SessionEvents&) = delete;

  /// No call begins afterwards; one that runs is waited for, unless it is the caller. The destructor does it, too.
  void close();

  void post(SessionEvent event, OnError on_error);
  void post(std::function<void()> call, OnError on_error);

 private:
  struct Inbox;

  std::shared_ptr<Inbox> inbox_;
  CallingThread thread_;  // calls the executor, so that whoever posts need not wait for it, or where there is none
};

}  // namespace tandem
