#include "tandem/metrics/classification.h"

#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "metrics/checks.h"
#include "tandem/core/error.h"

namespace tandem::metrics {
namespace {

// [N, C, …] as [N …, C].
at::Tensor classes_last(const at::Tensor& scores) { return scores.movedim(1, -1).flatten(0, -2); }

std::string wrong_scores(const at::Tensor& scores, const at::Tensor& targets) {
  if (!scores.is_floating_point())
    return std::string("scores are ") + c10::toString(scores.scalar_type()) + "; they are of a floating-point type";
  if (scores.dim() != targets.dim() + 1 || scores.size(1) == 0 || scores.select(1, 0).sizes() != targets.sizes())
    return shapes(scores, targets) + "; scores are [N, classes, …] for targets [N, …]";
  if (has_nan(scores)) return "a score is NaN";
  return "";
}

at::Tensor scalar(double value) { return at::scalar_tensor(value, at::kDouble); }

}  // namespace

TopKAccuracy::TopKAccuracy(Rank& rank, TopKAccuracyOptions options) : Metric(rank, "TopKAccuracy"), options_(options) {
  if (options.k < 1) throw ConfigError("TopKAccuracy: k is " + std::to_string(options.k) + "; use 1 or more");
  add_state("right", Merge::sum, at::zeros({}, at::kLong));
  add_state("all", Merge::sum, at::zeros({}, at::kLong));
}

void TopKAccuracy::add(const at::Tensor& outputs, const at::Tensor& targets) {
  if (const std::string wrong = wrong_scores(outputs, targets); !wrong.empty()) refuse(wrong);
  if (const std::string wrong = wrong_classes("targets", targets, outputs.size(1)); !wrong.empty()) refuse(wrong);
  const at::Tensor scores = classes_last(outputs),
                   classes = targets.flatten().to(scores.device(), at::kLong).unsqueeze(1);
  const at::Tensor own = scores.gather(1, classes);
  const at::Tensor later = at::arange(scores.size(1), classes.options()).unsqueeze(0) > classes;
  const at::Tensor before = ((scores > own) | ((scores == own) & later)).sum(1);
  state("right").add_((before < options_.k).sum().cpu());
  state("all").add_(classes.numel());
}

at::Tensor TopKAccuracy::result(const States& of_all) const {
  return of_all.at("right").to(at::kDouble) / of_all.at("all").to(at::kDouble);
}

ConfusionMatrix::ConfusionMatrix(Rank& rank, std::int64_t classes)
    : ConfusionMatrix(rank, classes, "ConfusionMatrix") {}

ConfusionMatrix::ConfusionMatrix(Rank& rank, std::int64_t classes, std::string name)
    : Metric(rank, name), classes_(classes) {
  if (classes < 1) throw ConfigError(name + ": there are " + std::to_string(classes) + " classes; use 1 or more");
  add_state("counts", Merge::sum, at::zeros({classes, classes}, at::kLong));
}

void ConfusionMatrix::add(const at::Tensor& outputs, const at::Tensor& targets) {
  if (const std::string wrong = wrong_classes("targets", targets, classes_); !wrong.empty()) refuse(wrong);
  at::Tensor predicted = outputs;
  if (outputs.dim() != targets.dim()) {
    if (const std::string wrong = wrong_scores(outputs, targets); !wrong.empty()) refuse(wrong);
    if (outputs.size(1) != classes_)
      refuse("scores of " + std::to_string(outputs.size(1)) + " classes; there are " + std::to_string(classes_));
    predicted = outputs.argmax(1);
  } else if (outputs.sizes() != targets.sizes()) {
    refuse(shapes(outputs, targets) + "; predicted classes have the targets' shape");
  } else if (const std::string wrong = wrong_classes("outputs", outputs, classes_); !wrong.empty()) {
    refuse(wrong);
  }
  const at::Tensor cells =
      targets.flatten().to(at::kCPU, at::kLong) * classes_ + predicted.flatten().to(at::kCPU, at::kLong);
  state("counts").add_(at::bincount(cells, {}, classes_ * classes_).view({classes_, classes_}));
}

at::Tensor ConfusionMatrix::result(const States& of_all) const { return of_all.at("counts"); }

namespace {

// numerator / denominator of each class, as `options` want them; `occurs`: in how many targets and predictions.
at::Tensor averaged(const at::Tensor& numerator, const at::Tensor& denominator, const at::Tensor& occurs,
                    const ClassScoreOptions& options) {
  const auto quotient = [&](const at::Tensor& above, const at::Tensor& below) {
    return at::where(below == 0, scalar(options.zero_division), above.to(at::kDouble) / below.to(at::kDouble));
  };
  if (options.average == Average::micro) return quotient(numerator.sum(), denominator.sum());
  const at::Tensor of_classes = quotient(numerator, denominator);
  if (options.average == Average::per_class) return of_classes;
  double sum = 0;
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < of_classes.numel(); ++i) {
    const double one = of_classes[i].item<double>();
    if (occurs[i].item<std::int64_t>() == 0 || std::isnan(one)) continue;
    sum += one;
    count += 1;
  }
  return scalar(count == 0 ? options.zero_division : sum / static_cast<double>(count));
}

struct ClassCounts {
  explicit ClassCounts(const at::Tensor& matrix)
      : right(matrix.diagonal()), are(matrix.sum(1)), taken(matrix.sum(0)), both(are + taken) {}
  at::Tensor right, are, taken, both;
};

}  // namespace

Precision::Precision(Rank& rank, ClassScoreOptions options)
    : ConfusionMatrix(rank, options.classes, "Precision"), options_(options) {}

at::Tensor Precision::result(const States& of_all) const {
  const ClassCounts counts(ConfusionMatrix::result(of_all));
  return averaged(counts.right, counts.taken, counts.both, options_);
}

Recall::Recall(Rank& rank, ClassScoreOptions options)
    : ConfusionMatrix(rank, options.classes, "Recall"), options_(options) {}

at::Tensor Recall::result(const States& of_all) const {
  const ClassCounts counts(ConfusionMatrix::result(of_all));
  return averaged(counts.right, counts.are, counts.both, options_);
}

F1::F1(Rank& rank, ClassScoreOptions options) : ConfusionMatrix(rank, options.classes, "F1"), options_(options) {}

at::Tensor F1::result(const States& of_all) const {
  const ClassCounts counts(ConfusionMatrix::result(of_all));
  return averaged(counts.right * 2, counts.both, counts.both, options_);
}

}  // namespace tandem::metrics
