#include "core/cancel_token.h"

#include <string>
#include <utility>

#include "tandem/core/error.h"

namespace tandem {

bool CancelToken::cancel(std::exception_ptr reason, int rank) noexcept {
  const std::lock_guard lock(mutex_);
  // relaxed: only written under the mutex that is held.
  if (cancelled_.load(std::memory_order_relaxed)) return false;
  reason_ = std::move(reason);
  rank_ = rank;
  // release: see cancelled().
  cancelled_.store(true, std::memory_order_release);
  for (const auto& on_cancel : subscriptions_) on_cancel();
  return true;
}

std::exception_ptr CancelToken::reason() const {
  const std::lock_guard lock(mutex_);
  return reason_;
}

int CancelToken::rank() const {
  const std::lock_guard lock(mutex_);
  return rank_;
}

void CancelToken::throw_cancelled() const {
  const int blamed = rank();
  std::string text = blamed >= 0 ? "cancelled because of rank " + std::to_string(blamed) : std::string("cancelled");
  if (const std::exception_ptr why = reason()) {
    try {
      std::rethrow_exception(why);
    } catch (const std::exception& error) {
      text += ": " + std::string(error.what());
    } catch (...) {
      text += ": an exception that is no std::exception";
    }
  }
  throw Cancelled(text);
}

CancelToken::Subscription::Subscription(CancelToken& token, std::function<void()> on_cancel) : token_(token) {
  const std::lock_guard lock(token_.mutex_);
  entry_ = token_.subscriptions_.insert(token_.subscriptions_.end(), std::move(on_cancel));
  if (token_.cancelled_.load(std::memory_order_relaxed)) (*entry_)();
}

CancelToken::Subscription::~Subscription() {
  const std::lock_guard lock(token_.mutex_);
  token_.subscriptions_.erase(entry_);
}

}  // namespace tandem
