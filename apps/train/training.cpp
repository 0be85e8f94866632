#include "training.h"

#include <algorithm>
#include <future>
#include <limits>
#include <utility>

#include <torch/nn/functional/loss.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "interrupt.h"
#include "models.h"
#include "progress.h"
#include "schedule.h"

namespace train {
namespace {

namespace F = torch::nn::functional;
using Model = tandem::nn::Model<torch::nn::SequentialImpl>;
using Loader = tandem::data::PreparedDataLoader<torch::data::Example<>>;

constexpr std::int64_t kTestBatch = 100;

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Options& options, const torch::nn::Sequential& model) {
  if (options.optimizer == OptimizerKind::sgd)
    return std::make_unique<torch::optim::SGD>(
        model->parameters(),
        torch::optim::SGDOptions(options.lr).momentum(options.momentum).weight_decay(options.weight_decay));
  return std::make_unique<torch::optim::AdamW>(
      model->parameters(), torch::optim::AdamWOptions(options.lr).weight_decay(options.weight_decay));
}

at::Tensor scores_of(const Model& model, const Options& options, const at::Tensor& images) {
  return model(options.model == ModelKind::mlp ? images.flatten(1) : images);
}

// Copies `weights` into the model. Throws ConfigError when they do not fit it.
void set_weights(torch::nn::Sequential& model, const tandem::io::NamedTensors& weights, const std::string& path) {
  const auto require = [&](bool holds, const std::string& otherwise) {
    if (!holds) throw tandem::ConfigError("--init-weights " + path + ": " + otherwise);
  };
  auto parameters = model->named_parameters();
  const torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : weights) {
    at::Tensor* parameter = parameters.find(name);
    require(parameter != nullptr, "the model has no parameter '" + name + "'");
    require(parameter->sizes() == tensor.sizes(), "'" + name + "' has sizes " + c10::str(tensor.sizes()) +
                                                      ", the model needs " + c10::str(parameter->sizes()));
    parameter->copy_(tensor);
  }
  for (const auto& parameter : parameters)
    require(std::any_of(weights.begin(), weights.end(), [&](const auto& w) { return w.first == parameter.key(); }),
            "the parameter '" + parameter.key() + "' is missing");
}

void save_weights(const Model& model, const std::string& path) {
  tandem::io::NamedTensors tensors;
  for (const auto& parameter : model->named_parameters()) tensors.emplace_back(parameter.key(), parameter.value());
  tandem::io::save_safetensors(path, tensors, {{"format", "pt"}});
}

class Trainer {
 public:
  Trainer(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs)
      : accelerator_(accelerator),
        options_(options),
        inputs_(inputs),
        module_(initial_model(options, inputs)),
        inner_(make_optimizer(options, module_)),
        model_(accelerator.prepare(module_)),
        optimizer_(accelerator.prepare(*inner_)),
        loader_(accelerator.prepare(tandem::data::DataLoader(
            inputs.train_set,
            {.batch_size = options.batch_size, .shuffle = options.shuffle, .drop_last = options.drop_last}))),
        schedule_(accelerator, *inner_, options, inputs.total_steps),
        log_(accelerator.is_main() ? options.log_json : ""),
        progress_(accelerator.is_main() && options.progress, inputs.total_steps) {}

  Outcome run() {
    throughput_.start();
    model_->train();
    while (!done()) run_epoch();
    throughput_.pause();
    progress_.clear();
    finish();
    return outcome_;
  }

 private:
  static torch::nn::Sequential initial_model(const Options& options, const Inputs& inputs) {
    auto model = make_model(options);
    if (!options.init_weights.empty()) set_weights(model, inputs.initial_weights, options.init_weights);
    return model;
  }

  bool done() const {
    return outcome_.interrupted || epoch_ >= options_.epochs || outcome_.steps >= inputs_.total_steps;
  }

  void run_epoch() {
    for (auto& [images, labels] : loader_) {
      {
        auto step = accelerator_.accumulate(model_);
        train_step(images, labels);
      }
      if (done()) return;
    }
    for (std::int64_t i = loader_.steps_without_batch(); i > 0 && !done(); --i) {
      auto step = accelerator_.accumulate_and_close(model_);
      train_step(at::empty({0, 1, 28, 28}), at::empty({0}, at::kLong));
    }
    if (schedule_.wants_loss())
      schedule_.end_epoch(mean_over_ranks(std::exchange(epoch_loss_, {}), std::exchange(epoch_batches_, 0)));
    epoch_ += 1;
  }

  // An empty batch only answers the other ranks' reductions.
  void train_step(const at::Tensor& images, const at::Tensor& labels) {
    const std::int64_t samples = images.size(0);
    const at::Tensor scores = scores_of(model_, options_, images);
    const at::Tensor loss = samples > 0 ? F::cross_entropy(scores, labels) : scores.sum();
    accelerator_.backward(loss);
    window_loss_ = window_loss_.defined() ? window_loss_ + loss.detach() : loss.detach();
    window_batches_ += samples > 0 ? 1 : 0;
    window_samples_ += samples;
    at::Tensor norm;
    if (options_.clip_grad_norm || !options_.log_json.empty())
      norm = accelerator_.clip_grad_norm_(model_,
                                          options_.clip_grad_norm.value_or(std::numeric_limits<double>::infinity()));
    optimizer_.step();
    optimizer_.zero_grad();
    if (accelerator_.sync_gradients()) end_update(norm);
    schedule_.step();  // after the log, which has the rate of the update just made
  }

  void end_update(const at::Tensor& norm) {
    outcome_.steps += 1;
    outcome_.epoch = epoch_;
    if (outcome_.steps == 1) outcome_.metrics.startup_seconds = seconds_since_process_start();
    const double rate = throughput_.update(window_samples_ * accelerator_.world_size());
    if (!options_.log_json.empty()) log_update(norm.item<double>(), rate);
    if (progress_.due())
      progress_.show(epoch_, outcome_.steps,
                     window_loss_.item<double>() / static_cast<double>(std::max<std::int64_t>(window_batches_, 1)),
                     rate);
    if (schedule_.wants_loss()) {
      epoch_loss_ = epoch_loss_.defined() ? epoch_loss_ + window_loss_ : window_loss_;
      epoch_batches_ += window_batches_;
    }
    window_loss_.reset();
    window_batches_ = 0;
    window_samples_ = 0;
    // One rank sees the signal first; all must stop after the same update.
    if (interrupted()) accelerator_.set_trigger();
    outcome_.interrupted = accelerator_.check_trigger();
  }

  void log_update(double norm, double rate) {
    const double loss = mean_over_ranks(window_loss_, window_batches_);
    if (!accelerator_.is_main()) return;
    log_.write({.step = outcome_.steps,
                .epoch = epoch_,
                .loss = loss,
                .grad_norm = norm,
                .lr = inner_->param_groups().front().options().get_lr(),
                .samples_per_second = rate});
  }

  // The mean of the losses of all ranks' batches, of which this rank has the sum and the number. Collective.
  double mean_over_ranks(const at::Tensor& loss_sum, std::int64_t batches) {
    const std::vector<double> mine{loss_sum.item<double>(), static_cast<double>(batches)};
    const at::Tensor all = accelerator_.reduce(at::tensor(mine, at::kDouble));
    return all[0].item<double>() / all[1].item<double>();
  }

  void finish() {
    // The weights first: they are what an interrupted user waits for.
    if (accelerator_.is_main() && !options_.save_weights.empty()) save_weights(model_, options_.save_weights);
    if (!outcome_.interrupted) outcome_.metrics.accuracy = test_accuracy();
    if (!accelerator_.is_main()) return;
    outcome_.metrics.train_seconds = throughput_.train_seconds();
    outcome_.metrics.samples_per_second = throughput_.samples_per_second();
    outcome_.metrics.peak_rss_mb = peak_rss_mb();
    log_.finish(outcome_.metrics);
  }

  // Every test sample once, over all ranks. Collective.
  double test_accuracy() {
    const torch::NoGradGuard no_grad;
    model_->eval();
    const bool split = options_.launch.data_loader.split_batches;
    auto loader = accelerator_.prepare(tandem::data::DataLoader(
        inputs_.test_set, {.batch_size = kTestBatch * (split ? accelerator_.world_size() : 1)}));
    std::int64_t correct = 0, seen = 0;
    const auto count = [&](const at::Tensor& hits) {
      const at::Tensor all = accelerator_.gather_for_metrics(hits);
      correct += all.sum().item<std::int64_t>();
      seen += all.size(0);
    };
    for (auto& [images, labels] : loader) count(scores_of(model_, options_, images).argmax(1).eq(labels));
    // The other ranks' last step, of which they keep all when this rank has no batch.
    for (std::int64_t i = loader.steps_without_batch(); i > 0; --i) count(at::empty({0}, at::kBool));
    return static_cast<double>(correct) / static_cast<double>(seen);
  }

  tandem::Accelerator& accelerator_;
  const Options& options_;
  const Inputs& inputs_;
  torch::nn::Sequential module_;
  std::unique_ptr<torch::optim::Optimizer> inner_;
  Model model_;
  tandem::optim::AcceleratedOptimizer optimizer_;
  Loader loader_;
  Schedule schedule_;
  MetricsLog log_;
  Progress progress_;
  Throughput throughput_;
  Outcome outcome_;
  std::int64_t epoch_ = 0;
  at::Tensor window_loss_;  // sum of the open window's losses on this rank
  std::int64_t window_batches_ = 0, window_samples_ = 0;
  at::Tensor epoch_loss_;  // the same of the epoch's closed windows, for a schedule that wants it
  std::int64_t epoch_batches_ = 0;
};

// Before the ranks start, so that nothing is printed of a training that cannot be.
void check_fills_a_step(const Options& options, std::int64_t samples) {
  const bool split = options.launch.data_loader.split_batches;
  const std::int64_t step = options.batch_size * (split ? 1 : tandem::examine(options.launch).world_size());
  if (options.drop_last && samples < step)
    throw tandem::ConfigError("the training set of " + std::to_string(samples) +
                              " samples is smaller than a batch of all ranks (" + std::to_string(step) +
                              ") with --drop-last; use a smaller --batch-size");
}

// Optimizer updates, of as many steps an epoch as any rank has. Known before the ranks start, for the same reason.
std::int64_t count_updates(const Options& options, std::int64_t samples) {
  const auto& launch = options.launch;
  const tandem::data::EpochPlan plan(
      tandem::data::plan_options({.batch_size = options.batch_size, .drop_last = options.drop_last}, launch.data_loader,
                                 samples, false, tandem::examine(launch).world_size()));
  const std::int64_t window = launch.gradient_accumulation_steps;
  const std::int64_t all_epochs = options.epochs * ((plan.steps(0) + window - 1) / window);
  const std::int64_t total = std::min(all_epochs, options.max_steps.value_or(all_epochs));
  if (options.warmup_steps > 0 && options.warmup_steps >= total)
    throw tandem::ConfigError("--warmup-steps " + std::to_string(options.warmup_steps) +
                              " leaves nothing of the training's " + std::to_string(total) + " updates; use fewer");
  return total;
}

}  // namespace

Inputs read_inputs(const Options& options) {
  const auto read = [&](tandem::data::MnistSplit split, std::optional<std::int64_t> limit) {
    try {
      return tandem::data::mnist(options.data_dir, {.split = split, .normalize = options.normalize, .limit = limit});
    } catch (const tandem::DataError& error) {
      throw tandem::ConfigError(std::string("--data-dir: ") + error.what());
    }
  };
  // Beside the larger set, so that damage is found before training and costs no time.
  auto test_set = std::async(std::launch::async, read, tandem::data::MnistSplit::test, std::nullopt);
  tandem::io::NamedTensors weights;
  if (!options.init_weights.empty()) {
    try {
      weights = tandem::io::load_safetensors(options.init_weights);
    } catch (const tandem::CheckpointError& error) {
      throw tandem::ConfigError(std::string("--init-weights: ") + error.what());
    }
  }
  auto train_set = read(tandem::data::MnistSplit::train, options.limit_train_samples);
  const auto samples = static_cast<std::int64_t>(*train_set.size());
  check_fills_a_step(options, samples);
  const std::int64_t total_steps = count_updates(options, samples);
  return {std::move(train_set), test_set.get(), std::move(weights), total_steps};
}

Outcome train_on_rank(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs) {
  return Trainer(accelerator, options, inputs).run();
}

}  // namespace train
