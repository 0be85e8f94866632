#pragma once

#include <atomic>

#include "tandem/core/cancel_token.h"

namespace tandem {

/// True when nobody wants what the calling thread is making for a consumer any more: the launch is ending, or the
/// consumer has gone. Work that may wait for long looks at it and gives up: threads cannot be stopped from outside.
bool work_is_unwanted() noexcept;

/// While alive, the calling thread works for a consumer that is gone when `token` or `gone` (may be null) says so.
class WorkScope {
 public:
  /// Both outlive it. Scopes nest: work is unwanted when any of them says so.
  explicit WorkScope(const CancelToken& token, const std::atomic<bool>* gone = nullptr) noexcept;
  ~WorkScope();
  WorkScope(const WorkScope&) = delete;
  WorkScope& operator=(const WorkScope&) = delete;

 private:
  friend bool work_is_unwanted() noexcept;
  const CancelToken& token_;
  const std::atomic<bool>* gone_;
  const WorkScope* outer_;
};

}  // namespace tandem
