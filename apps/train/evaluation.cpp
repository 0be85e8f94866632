#include "evaluation.h"

#include <algorithm>
#include <limits>

#include "class_report.h"
#include "stop.h"
#include "tandem/metrics/exact_sum.h"

namespace train {
namespace {

constexpr std::size_t kMostInMatrix = 1000;  // classes, whose matrix has the square of them

// Of each column, whatever the order of the rows.
class ColumnMeans {
 public:
  explicit ColumnMeans(std::size_t columns) : finite_(columns), others_(columns) {
    for (at::Tensor& sum : finite_) sum = tandem::metrics::exact_zero();
  }

  void add(const at::Tensor& rows) {
    const at::Tensor wide = rows.to(at::kCPU, at::kDouble);
    for (std::size_t i = 0; i < finite_.size(); ++i) {
      const at::Tensor column = wide.select(1, static_cast<std::int64_t>(i)), is_finite = column.isfinite();
      tandem::metrics::exact_add(finite_[i], column.where(is_finite, 0.0));
      others_[i] += column.masked_select(is_finite.logical_not()).sum().item<double>();
    }
    rows_ += rows.size(0);
  }

  std::vector<double> means() const {
    std::vector<double> means;
    for (std::size_t i = 0; i < finite_.size(); ++i)
      means.push_back((tandem::metrics::exact_value(finite_[i]) + others_[i]) / static_cast<double>(rows_));
    return means;
  }

 private:
  std::vector<at::Tensor> finite_;
  std::vector<double> others_;  // of infinite numbers and NaN
  std::int64_t rows_ = 0;
};

// A kernel may give a sample other bits in a batch of another size, so a last batch is filled up.
at::Tensor scores_of(tandem::nn::Model<Net>& model, const at::Tensor& inputs, std::int64_t batch) {
  const std::int64_t samples = inputs.size(0);
  if (samples == 0 || samples >= batch) return model(inputs);
  std::vector<std::int64_t> missing = inputs.sizes().vec();
  missing.front() = batch - samples;
  const at::Tensor scores = model(at::cat({inputs, inputs.narrow(0, 0, 1).expand(missing)}));
  return scores.narrow(0, 0, scores.size(0) / batch * samples);
}

}  // namespace

std::optional<std::vector<double>> evaluate(tandem::Accelerator& accelerator, tandem::nn::Model<Net>& model,
                                            const Options& options, const Task& task, Tracking* tracking) {
  const torch::NoGradGuard no_grad;
  model->eval();
  const bool split = options.launch.data_loader.split_batches;
  const Samples test_set = task.test_set();
  auto loader =
      test_set.prepare(accelerator, {.batch_size = task.test_batch() * (split ? accelerator.logical_ranks() : 1),
                                     .workers = options.data.workers.value_or(task.workers())});
  const auto classes = task.classes();
  std::optional<ClassReport> report;
  if (tracking && tracking->enabled() && !classes.empty() && classes.size() <= kMostInMatrix) report.emplace();
  ColumnMeans means(task.figures());
  const auto take = [&](const at::Tensor& inputs, const at::Tensor& targets) {
    const at::Tensor scores = scores_of(model, inputs, task.test_batch());
    means.add(accelerator.gather_for_metrics(task.judge(scores, targets)));
    if (report) report->add(accelerator.gather_for_metrics(scores), accelerator.gather_for_metrics(targets));
  };
  for (auto& [samples, targets] : loader) {
    if (stop_is_asked(accelerator)) return std::nullopt;
    take(samples, targets);
  }
  // The other ranks' last step, of which they keep all when this rank has no batch.
  for (std::int64_t i = loader.steps_without_batch(); i > 0; --i) {
    if (stop_is_asked(accelerator)) return std::nullopt;
    const auto nothing = tandem::data::to_device(test_set.none(), accelerator.device());
    take(nothing.data, nothing.target);
  }
  if (report && tracking->trackers().recording())
    report->log(tracking->trackers(), test_set, classes, tracking->step());
  return means.means();
}

Verdict not_judged(const Task& task) {
  return task.verdict(std::vector<double>(task.figures(), std::numeric_limits<double>::quiet_NaN()));
}

}  // namespace train
