// Networks on a table of numbers: classes where its targets are integers, otherwise regression.
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>

#include <torch/nn/functional/loss.h>

#include "classification.h"
#include "make_net.h"
#include "model_flags.h"
#include "printable.h"
#include "table_file.h"
#include "tandem/core/error.h"
#include "tandem/metrics/exact_sum.h"

namespace train {
namespace {

namespace F = torch::nn::functional;

Samples samples_of(const Table& table) { return Samples(tandem::data::TensorDataset(table.inputs, table.targets)); }

std::shared_ptr<Net> make_net_for(const Options& options, const Table& table) {
  return make_table_net(options, table.inputs.sizes().slice(1), table.outputs);
}

std::string about_table(const Options& options, const Tables& tables) {
  const std::int64_t numbers = tables.train.inputs[0].numel(), outputs = tables.train.outputs;
  return options.data.file + ": " + counted(tables.train.size(), "sample") + " of " + counted(numbers, "number") +
         " to train on, " + std::to_string(tables.val.size()) + " to judge by; " +
         (tables.train.has_labels() ? std::to_string(outputs) + " classes"
                                    : counted(outputs, "number") + " to predict");
}

std::vector<std::string> numbers_from_0(std::int64_t count) {
  std::vector<std::string> names;
  for (std::int64_t i = 0; i < count; ++i) names.push_back(std::to_string(i));
  return names;
}

class TableClassification : public Classification {
 public:
  TableClassification(const Options& options, Tables tables)
      : Classification(numbers_from_0(tables.train.outputs), "validation", options.label_smoothing),
        options_(options),
        tables_(std::move(tables)) {}

  Samples train_set() const override { return samples_of(tables_.train); }
  Samples test_set() const override { return samples_of(tables_.val); }
  std::shared_ptr<Net> make_net() const override { return make_net_for(options_, tables_.train); }
  std::string about() const override { return about_table(options_, tables_); }
  std::string data() const override { return tables_.data; }

  std::vector<std::int64_t> samples_of_classes() const override {
    const at::Tensor counts = tables_.train.targets.bincount({}, outputs());
    return {counts.const_data_ptr<std::int64_t>(), counts.const_data_ptr<std::int64_t>() + counts.numel()};
  }

 private:
  const Options options_;
  Tables tables_;
};

// The sum of a column's numbers, divided by how many they are.
double exact_mean(const at::Tensor& column) {
  at::Tensor sum = tandem::metrics::exact_zero();
  tandem::metrics::exact_add(sum, column);
  return tandem::metrics::exact_value(sum) / static_cast<double>(column.numel());
}

std::vector<double> variances_of(const at::Tensor& targets) {
  std::vector<double> variances;
  for (std::int64_t i = 0; i < targets.size(1); ++i) {
    const at::Tensor column = targets.select(1, i).to(at::kDouble);
    variances.push_back(exact_mean((column - exact_mean(column)).square()));
  }
  return variances;
}

// Of [B, K] targets: mean squared error, judged by that, by the mean absolute error, and by R2, which is the mean of
// the K columns' as metrics::R2 has it.
class Regression : public Task {
 public:
  Regression(const Options& options, Tables tables)
      : options_(options), tables_(std::move(tables)), variances_(variances_of(tables_.val.targets)) {}

  Samples train_set() const override { return samples_of(tables_.train); }
  Samples test_set() const override { return samples_of(tables_.val); }
  std::shared_ptr<Net> make_net() const override { return make_net_for(options_, tables_.train); }
  std::string about() const override { return about_table(options_, tables_); }
  std::string data() const override { return tables_.data; }

  at::Tensor loss(const at::Tensor& scores, const at::Tensor& targets) const override {
    return F::mse_loss(scores, targets);
  }

  // The absolute error, and each column's squared one.
  at::Tensor judge(const at::Tensor& scores, const at::Tensor& targets) const override {
    const at::Tensor error = scores.to(at::kDouble) - targets.to(at::kDouble);
    return at::cat({error.abs().mean(1, /*keepdim=*/true), error.square()}, 1);
  }

  std::int64_t outputs() const override { return tables_.train.outputs; }
  std::size_t figures() const override { return 1 + variances_.size(); }

  Verdict verdict(const std::vector<double>& means) const override {
    const auto columns = static_cast<double>(variances_.size());
    double squared = 0, r2 = 0;
    for (std::size_t i = 0; i < variances_.size(); ++i) {
      squared += means[i + 1] / columns;
      r2 += explained(means[i + 1], variances_[i]) / columns;
    }
    std::array<char, 128> sentence;
    std::snprintf(sentence.data(), sentence.size(),
                  "validation mean squared error %.6g, mean absolute error %.6g, R2 %.4f", squared, means[0], r2);
    return {sentence.data(), {{"mean_squared_error", squared}, {"mean_absolute_error", means[0]}, {"r2", r2}}};
  }

 private:
  double explained(double squared, double variance) const {
    if (tables_.val.size() < 2 || std::isnan(squared)) return std::numeric_limits<double>::quiet_NaN();
    if (variance > 0) return 1 - squared / variance;
    return squared > 0 ? 0 : 1;
  }

  const Options options_;
  Tables tables_;
  std::vector<double> variances_;
};

void check_are_images(const Options& options, const at::Tensor& inputs) {
  if (options.model == ModelKind::mlp || options.model == ModelKind::script) return;
  if (inputs.dim() == 4 && inputs.size(2) == inputs.size(3)) return;
  throw tandem::ConfigError("--model " + name_of(options.model) + " is for images; 'inputs' of --data-file " +
                            options.data.file + " has sizes " + c10::str(inputs.sizes()) +
                            ", not [N, channels, size, size]; use --model mlp");
}

}  // namespace

std::unique_ptr<const Task> make_table_task(const Options& options) {
  refuse_picture_flags(options.data, "a table");
  if (options.data.normalize)
    throw tandem::ConfigError("--normalize is for pictures; the data is a table, whose numbers stay as they are");
  Tables tables = read_tables(options);
  check_are_images(options, tables.train.inputs);
  if (tables.train.has_labels()) return std::make_unique<TableClassification>(options, std::move(tables));
  if (options.label_smoothing > 0)
    throw tandem::ConfigError("--label-smoothing is for classes; 'targets' of --data-file " + options.data.file +
                              " are floating-point numbers, which are no labels");
  return std::make_unique<Regression>(options, std::move(tables));
}

}  // namespace train
