#pragma once

#include <cstdint>
#include <limits>

#include "tandem/metrics/metric.h"

namespace tandem::metrics {

/// What TopKAccuracy counts.
struct TopKAccuracyOptions {
  std::int64_t k = 1;  ///< a sample is right when its class is among those with the k highest scores
};

/// The share of samples whose class is among those with the highest scores. Scores [N, C, …], of a floating-point type,
/// and classes [N, …], integers from 0. Of classes with equal scores the later one is the higher, as in scikit-learn's
/// top_k_accuracy_score. The result is one number.
class TopKAccuracy : public Metric {
 public:
  /// Throws ConfigError when k is below 1.
  explicit TopKAccuracy(Rank& rank, TopKAccuracyOptions options = {});

 private:
  void add(const at::Tensor& outputs, const at::Tensor& targets) override;
  at::Tensor result(const States& of_all) const override;

  TopKAccuracyOptions options_;
};

/// How often each class was taken for each: int64 [C, C], a row for each true class, a column for each predicted one.
/// Outputs are scores [N, C, …], of which the first highest counts, or predicted classes [N, …]; targets are classes
/// [N, …].
class ConfusionMatrix : public Metric {
 public:
  /// Of classes 0 to `classes` - 1. Throws ConfigError when there is none.
  ConfusionMatrix(Rank& rank, std::int64_t classes);

 protected:
  /// For metrics that come from the matrix.
  ConfusionMatrix(Rank& rank, std::int64_t classes, std::string name);
  at::Tensor result(const States& of_all) const override;

 private:
  void add(const at::Tensor& outputs, const at::Tensor& targets) override;

  std::int64_t classes_;
};

/// How the figures of classes become one.
enum class Average : std::uint8_t {
  macro,     ///< their mean, over those classes that occur among targets or predictions
  micro,     ///< that of all samples together: where each sample has one class, its accuracy
  per_class  ///< not at all: [C]
};

/// What Precision, Recall and F1 come to.
struct ClassScoreOptions {
  std::int64_t classes = 2;          ///< of which targets and outputs are
  Average average = Average::macro;  ///< what becomes of their figures
  double zero_division = 0;          ///< a class's figure where it would be 0 / 0; NaN: left out of the mean
};

/// Of the samples that were taken for a class, the share that is of it. Outputs and targets as ConfusionMatrix has
/// them; the results are those of scikit-learn's precision_score.
class Precision : public ConfusionMatrix {
 public:
  /// Throws ConfigError when there is no class.
  Precision(Rank& rank, ClassScoreOptions options);

 private:
  at::Tensor result(const States& of_all) const override;
  ClassScoreOptions options_;
};

/// Of the samples of a class, the share that was taken for it. See Precision.
class Recall : public ConfusionMatrix {
 public:
  /// Throws ConfigError when there is no class.
  Recall(Rank& rank, ClassScoreOptions options);

 private:
  at::Tensor result(const States& of_all) const override;
  ClassScoreOptions options_;
};

/// The harmonic mean of Precision and Recall. See Precision.
class F1 : public ConfusionMatrix {
 public:
  /// Throws ConfigError when there is no class.
  F1(Rank& rank, ClassScoreOptions options);

 private:
  at::Tensor result(const States& of_all) const override;
  ClassScoreOptions options_;
};

/// What Auroc and AveragePrecision come to.
struct RankingOptions {
  Average average = Average::macro;  ///< of several classes; micro: ConfigError
};

/// The area under the receiver operating characteristic: how likely a sample of a class has a higher score for it than
/// one of another class, where equal scores count half. Scores [N] and targets [N] of 0 and 1, or scores [N, C] and
/// classes [N], each class against the rest. NaN where there is one class only. The results are those of
/// scikit-learn's roc_auc_score (with multi_class="ovr", and a class that does not occur is NaN). Keeps all scores.
class Auroc : public Metric {
 public:
  /// Throws ConfigError for Average::micro.
  explicit Auroc(Rank& rank, RankingOptions options = {});

 private:
  void add(const at::Tensor& outputs, const at::Tensor& targets) override;
  at::Tensor result(const States& of_all) const override;

  RankingOptions options_;
};

/// The mean of the precisions at each score that is a sample's, weighted by how much recall is gained there. Inputs as
/// Auroc has them; 0 where no sample is of the class. The results are those of scikit-learn's average_precision_score.
/// Keeps all scores.
class AveragePrecision : public Metric {
 public:
  /// Throws ConfigError for Average::micro.
  explicit AveragePrecision(Rank& rank, RankingOptions options = {});

 private:
  void add(const at::Tensor& outputs, const at::Tensor& targets) override;
  at::Tensor result(const States& of_all) const override;

  RankingOptions options_;
};

}  // namespace tandem::metrics
