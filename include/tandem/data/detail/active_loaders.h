#pragma once

#include <vector>

#include "tandem/data/detail/step_info.h"
namespace tandem::data {

struct StepInfo;

/// The loaders that a rank is iterating over, the innermost last, each with the step that was handed out last.
class ActiveLoaders {
 public:
  /// A loader has begun an epoch; `status` stays where it is until it leaves.
  void enter(const StepInfo* status) { stack_.push_back(status); }

  /// It has ended it.
  void leave(const StepInfo* status) { std::erase(stack_, status); }

  const std::vector<const StepInfo*>& all() const { return stack_; }  ///< the outermost first

  /// Of the innermost loader; null outside of any.
  const StepInfo* current() const { return stack_.empty() ? nullptr : stack_.back(); }

 private:
  std::vector<const StepInfo*> stack_;
};

}  // namespace tandem::data
