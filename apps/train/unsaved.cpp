#include "unsaved.h"

#include <algorithm>
#include <filesystem>

#include "printable.h"

namespace train {

void Unsaved::made(std::int64_t steps) {
  const std::lock_guard lock(mutex_);
  steps_ = steps;
}

void Unsaved::saving(std::int64_t steps, const std::string& path) {
  const std::lock_guard lock(mutex_);
  checkpoints_.push_back({steps, path});
  steps_ = std::max(steps_, steps);
}

void Unsaved::wrote_weights() {
  const std::lock_guard lock(mutex_);
  weights_.clear();
}

std::string Unsaved::text() const {
  const std::lock_guard lock(mutex_);
  // A checkpoint has its name only when it is whole.
  const auto is_there = [](const Checkpoint& checkpoint) {
    std::error_code error;
    return std::filesystem::exists(checkpoint.path + "/manifest.json", error);
  };
  const auto newest = std::find_if(checkpoints_.rbegin(), checkpoints_.rend(), is_there);
  std::string text;
  if (newest == checkpoints_.rend())
    text = counted(steps_, "update") + ", all that were made: there is no checkpoint";
  else
    text = counted(steps_ - newest->steps, "update") + "; " + newest->path + " has the " +
           std::to_string(newest->steps) + " before";
  return weights_.empty() ? text : text + "; the weights are not in " + weights_;
}

}  // namespace train
