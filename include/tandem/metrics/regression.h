#pragma once

#include "tandem/metrics/metric.h"

namespace tandem::metrics {

/// The mean of (output - target)², computed in float64. Outputs and targets of one shape, [N, …].
class MeanSquaredError : public Metric {
 public:
  /// Of `rank` and the others.
  explicit MeanSquaredError(Rank& rank);

 private:
  void add(const at::Tensor& outputs, const at::Tensor& targets) override;
  at::Tensor result(const States& of_all) const override;
};

/// The mean of |output - target|, computed in float64. Outputs and targets of one shape, [N, …].
class MeanAbsoluteError : public Metric {
 public:
  /// Of `rank` and the others.
  explicit MeanAbsoluteError(Rank& rank);

 private:
  void add(const at::Tensor& outputs, const at::Tensor& targets) override;
  at::Tensor result(const States& of_all) const override;
};

/// The share of the targets' variance that the outputs explain: 1 at best, 0 for their mean. Outputs and targets of one
/// shape, [N] or [N, D]: then the mean over the D. Targets that are all the same give 1 where all outputs are right,
/// and 0 otherwise; one sample gives NaN. The results are those of scikit-learn's r2_score. Keeps all targets.
class R2 : public Metric {
 public:
  /// Of `rank` and the others.
  explicit R2(Rank& rank);

 private:
  void add(const at::Tensor& outputs, const at::Tensor& targets) override;
  at::Tensor result(const States& of_all) const override;
};

}  // namespace tandem::metrics
