#pragma once

#include <string>
#include <utility>
#include <vector>

#include "task.h"

namespace train {

/// What tasks of classes have in common: cross-entropy, judged by accuracy, top-5 accuracy where there are more than
/// five classes, and the mean cross-entropy ("loss").
class Classification : public Task {
 public:
  /// `judged_on`: what the test set is called, such as "test".
  Classification(std::vector<std::string> classes, std::string judged_on, double label_smoothing)
      : classes_(std::move(classes)), judged_on_(std::move(judged_on)), label_smoothing_(label_smoothing) {}

  at::Tensor loss(const at::Tensor& scores, const at::Tensor& targets) const override;
  at::Tensor judge(const at::Tensor& scores, const at::Tensor& labels) const override;
  Verdict verdict(const std::vector<double>& means) const override;
  std::size_t figures() const override { return has_top5() ? 3 : 2; }
  std::vector<std::string> classes() const override { return classes_; }

 private:
  bool has_top5() const { return classes_.size() > 5; }

  std::vector<std::string> classes_;
  std::string judged_on_;
  double label_smoothing_;
};

}  // namespace train
