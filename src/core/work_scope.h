#pragma once

#include <atomic>

#include "tandem/core/unwanted_work.h"

namespace tandem {

class CancelToken;

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
