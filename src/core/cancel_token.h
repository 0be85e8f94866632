#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <list>
#include <mutex>

namespace tandem {

/// Ends everything that waits, once. Every wait in Tandem is for its object or for the token. All members may be called
/// from any thread. Outlives its subscriptions and whatever waits on it.
class CancelToken {
 public:
  CancelToken() = default;
  CancelToken(const CancelToken&) = delete;
  CancelToken& operator=(const CancelToken&) = delete;

  /// Fires the token with what went wrong and the rank to blame (-1: none). Only the first call counts; it returns true
  /// after all subscriptions have run.
  bool cancel(std::exception_ptr reason, int rank = -1) noexcept;

  // acquire: whoever sees true sees reason and rank.
  /// Whether it has fired. Costs one load.
  bool cancelled() const noexcept { return cancelled_.load(std::memory_order_acquire); }

  /// Throws Cancelled, quoting the reason, when the token has fired.
  void check() const {
    if (cancelled()) throw_cancelled();
  }

  /// What went wrong; null until the token fires.
  std::exception_ptr reason() const;

  /// The rank to blame; -1: none, or not fired.
  int rank() const;

  /// Throws Cancelled, quoting the reason and naming the rank to blame.
  [[noreturn]] void throw_cancelled() const;

  /// Calls `on_cancel` when the token fires, on the thread that fires it, or at once if it has fired before. The
  /// callback must neither throw nor subscribe nor unsubscribe. The destructor waits for a callback that is running.
  class Subscription {
   public:
    /// Begins to listen. `token` outlives it.
    Subscription(CancelToken& token, std::function<void()> on_cancel);
    ~Subscription();
    Subscription(const Subscription&) = delete;
    Subscription& operator=(const Subscription&) = delete;

   private:
    CancelToken& token_;
    std::list<std::function<void()>>::iterator entry_;
  };

 private:
  std::atomic<bool> cancelled_{false};
  mutable std::mutex mutex_;  // guards all below; held while callbacks run, so that none runs after it is removed
  std::exception_ptr reason_;
  int rank_ = -1;
  std::list<std::function<void()>> subscriptions_;
};

}  // namespace tandem
