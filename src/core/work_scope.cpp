#include "core/work_scope.h"

#include <utility>

#include "core/cancel_token.h"

namespace tandem {
namespace {

thread_local const WorkScope* current_work = nullptr;

}  // namespace

WorkScope::WorkScope(const CancelToken& token, const std::atomic<bool>* gone) noexcept
    : token_(token), gone_(gone), outer_(std::exchange(current_work, this)) {}

WorkScope::~WorkScope() { current_work = outer_; }

bool work_is_unwanted() noexcept {
  for (const WorkScope* work = current_work; work; work = work->outer_)
    if (work->token_.cancelled() || (work->gone_ && work->gone_->load(std::memory_order_relaxed))) return true;
  return false;
}

}  // namespace tandem
