// Metrics of how scores order samples.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "metrics/checks.h"
#include "tandem/core/error.h"
#include "tandem/metrics/classification.h"

namespace tandem::metrics {
namespace {

void check_average(const char* name, const RankingOptions& options) {
  if (options.average == Average::micro)
    throw ConfigError(std::string(name) + ": a micro average of scores is not offered; use macro or per_class");
}

std::string wrong_ranking(const at::Tensor& outputs, const at::Tensor& targets) {
  if (!outputs.is_floating_point())
    return std::string("scores are ") + c10::toString(outputs.scalar_type()) + "; they are of a floating-point type";
  if (targets.dim() != 1 || outputs.dim() > 2 || (outputs.dim() == 2 && outputs.size(1) < 2))
    return shapes(outputs, targets) + "; scores are [N] for targets [N] of 0 and 1, or [N, classes]";
  if (has_nan(outputs)) return "a score is NaN";
  return wrong_classes("targets", targets, outputs.dim() == 1 ? 2 : outputs.size(1));
}

// Samples with one score, from the highest score on: how many of them are of the class, and how many are not.
struct Tie {
  std::int64_t of_class = 0, others = 0;
};

std::vector<Tie> ties_of(const at::Tensor& scores, const at::Tensor& is_of_class) {
  const auto [sorted, order] = scores.contiguous().sort(/*dim=*/0, /*descending=*/true);
  const at::Tensor flags = is_of_class.index_select(0, order).contiguous();
  const double* const score = sorted.const_data_ptr<double>();
  const bool* const flag = flags.const_data_ptr<bool>();
  std::vector<Tie> ties;
  for (std::int64_t i = 0; i < sorted.numel(); ++i) {
    if (i == 0 || score[i] != score[i - 1]) ties.emplace_back();
    (flag[i] ? ties.back().of_class : ties.back().others) += 1;
  }
  return ties;
}

// Counted in halves of pairs, so that it is exact.
double area(const std::vector<Tie>& ties) {
  std::uint64_t above = 0, others = 0, halves = 0;
  for (const Tie& tie : ties) {
    const auto of_class = static_cast<std::uint64_t>(tie.of_class), rest = static_cast<std::uint64_t>(tie.others);
    halves += rest * (2 * above + of_class);
    above += of_class;
    others += rest;
  }
  if (above == 0 || others == 0) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(halves) / (2.0 * static_cast<double>(above) * static_cast<double>(others));
}

double average_precision(const std::vector<Tie>& ties) {
  std::int64_t all = 0, right = 0, taken = 0;
  for (const Tie& tie : ties) all += tie.of_class;
  if (all == 0) return 0;
  double sum = 0;
  for (const Tie& tie : ties) {
    right += tie.of_class;
    taken += tie.of_class + tie.others;
    sum += static_cast<double>(tie.of_class) / static_cast<double>(all) *
           (static_cast<double>(right) / static_cast<double>(taken));
  }
  return sum;
}

template <class Judge>
at::Tensor judge_classes(const at::Tensor& scores, const at::Tensor& targets, Average average, const Judge& judge) {
  if (scores.dim() == 1) return at::scalar_tensor(judge(ties_of(scores, targets == 1)), at::kDouble);
  std::vector<double> of_classes;
  double sum = 0;
  for (std::int64_t i = 0; i < scores.size(1); ++i) {
    of_classes.push_back(judge(ties_of(scores.select(1, i), targets == i)));
    sum += of_classes.back();
  }
  if (average == Average::per_class) return at::tensor(of_classes, at::kDouble);
  return at::scalar_tensor(sum / static_cast<double>(of_classes.size()), at::kDouble);
}

}  // namespace

Auroc::Auroc(Rank& rank, RankingOptions options) : Metric(rank, "Auroc"), options_(options) {
  check_average("Auroc", options);
  add_state("scores", Merge::join, at::empty({0}, at::kDouble));
  add_state("targets", Merge::join, at::empty({0}, at::kLong));
}

void Auroc::add(const at::Tensor& outputs, const at::Tensor& targets) {
  if (const std::string wrong = wrong_ranking(outputs, targets); !wrong.empty()) refuse(wrong);
  append("scores", outputs.to(at::kDouble));
  append("targets", targets.to(at::kLong));
}

at::Tensor Auroc::result(const States& of_all) const {
  return judge_classes(of_all.at("scores"), of_all.at("targets"), options_.average, area);
}

AveragePrecision::AveragePrecision(Rank& rank, RankingOptions options)
    : Metric(rank, "AveragePrecision"), options_(options) {
  check_average("AveragePrecision", options);
  add_state("scores", Merge::join, at::empty({0}, at::kDouble));
  add_state("targets", Merge::join, at::empty({0}, at::kLong));
}

void AveragePrecision::add(const at::Tensor& outputs, const at::Tensor& targets) {
  if (const std::string wrong = wrong_ranking(outputs, targets); !wrong.empty()) refuse(wrong);
  append("scores", outputs.to(at::kDouble));
  append("targets", targets.to(at::kLong));
}

at::Tensor AveragePrecision::result(const States& of_all) const {
  return judge_classes(of_all.at("scores"), of_all.at("targets"), options_.average, average_precision);
}

}  // namespace tandem::metrics
