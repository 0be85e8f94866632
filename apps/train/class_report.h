#pragma once

#include <string>
#include <vector>

#include "tandem/io/tracker_set.h"
#include "task.h"

namespace train {

/// Tells for a test set of classes which ones a network takes for which, and what it gets most wrong.
class ClassReport {
 public:
  /// Scores [B, C] and labels of the next B samples, in the order of the test set.
  void add(const at::Tensor& scores, const at::Tensor& labels);

  /// Records the matrix of true and predicted classes (eval/confusion), and of
  /// pictures those of `test_set` with the largest losses, worst first (eval/worst). `classes`: the classes' names.
  void log(tandem::io::TrackerSet& trackers, const Samples& test_set, const std::vector<std::string>& classes,
           std::int64_t step) const;

 private:
  std::vector<at::Tensor> scores_, labels_;  // on the CPU
};

}  // namespace train
