#include "evaluation.h"

#include "class_report.h"
#include "stop.h"

namespace train {

std::optional<double> evaluate(tandem::Accelerator& accelerator, tandem::nn::Model<Net>& model, const Options& options,
                               const Task& task, Tracking* tracking) {
  const torch::NoGradGuard no_grad;
  model->eval();
  const bool split = options.launch.data_loader.split_batches;
  auto loader = accelerator.prepare(tandem::data::DataLoader(
      task.test_set(), {.batch_size = task.test_batch() * (split ? accelerator.logical_ranks() : 1)}));
  const auto classes = task.classes();
  std::optional<ClassReport> report;
  if (tracking && tracking->enabled() && !classes.empty()) report.emplace();
  double sum = 0;
  std::int64_t seen = 0;
  const auto take = [&](const at::Tensor& inputs, const at::Tensor& targets) {
    const at::Tensor scores = model(inputs);
    const at::Tensor all = accelerator.gather_for_metrics(task.judge(scores, targets));
    if (report) report->add(accelerator.gather_for_metrics(scores), accelerator.gather_for_metrics(targets));
    sum += all.sum(at::kDouble).item<double>();
    seen += all.size(0);
  };
  for (auto& [samples, targets] : loader) {
    if (stop_is_asked(accelerator)) return std::nullopt;
    take(samples, targets);
  }
  // The other ranks' last step, of which they keep all when this rank has no batch.
  const auto nothing = tandem::data::to_device(task.test_set().get_batch({}), accelerator.device());
  for (std::int64_t i = loader.steps_without_batch(); i > 0; --i) {
    if (stop_is_asked(accelerator)) return std::nullopt;
    take(nothing.data, nothing.target);
  }
  if (report && tracking->trackers().recording())
    report->log(tracking->trackers(), task.test_set(), classes, tracking->step());
  return sum / static_cast<double>(seen);
}

}  // namespace train
