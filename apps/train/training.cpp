#include "training.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include <torch/nn/functional/loss.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "checkpoints.h"
#include "class_report.h"
#include "common/interrupt.h"
#include "io/output_file.h"
#include "progress.h"
#include "schedule.h"
#include "tracking.h"

namespace train {
namespace {

namespace F = torch::nn::functional;
using Model = tandem::nn::Model<Net>;
using Losses = std::pair<at::Tensor, at::Tensor>;  // of a step, and its gradient's norm
using Loader = tandem::data::PreparedDataLoader<torch::data::Example<>>;

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Options& options, const Net& net) {
  if (options.optimizer == OptimizerKind::sgd)
    return std::make_unique<torch::optim::SGD>(
        net.parameters(),
        torch::optim::SGDOptions(options.lr).momentum(options.momentum).weight_decay(options.weight_decay));
  return std::make_unique<torch::optim::AdamW>(
      net.parameters(), torch::optim::AdamWOptions(options.lr).weight_decay(options.weight_decay));
}

// Copies `weights` into `net`. Throws ConfigError when they do not fit it.
void set_weights(Net& net, const tandem::io::NamedTensors& weights, const std::string& path) {
  const auto require = [&](bool holds, const std::string& otherwise) {
    if (!holds) throw tandem::ConfigError("--init-weights " + path + ": " + otherwise);
  };
  auto parameters = net.named_parameters();
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

void save_weights(const Model& model, const std::string& path, tandem::io::OutputFile& file) {
  tandem::io::NamedTensors tensors;
  for (const auto& parameter : model->named_parameters()) tensors.emplace_back(parameter.key(), parameter.value());
  file.write([&](const tandem::io::WriteBytes& write) {
    tandem::io::write_safetensors(write, path, tensors, {{"format", "pt"}});
  });
}

class Trainer {
 public:
  Trainer(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Unsaved& unsaved)
      : accelerator_(accelerator),
        options_(options),
        inputs_(inputs),
        unsaved_(unsaved),
        net_(initial_net(options, inputs)),
        inner_(make_optimizer(options, *net_)),
        model_(accelerator.prepare(net_)),
        optimizer_(accelerator.prepare(*inner_)),
        loader_(accelerator.prepare(tandem::data::DataLoader(
            inputs.task->train_set(),
            {.batch_size = options.batch_size, .shuffle = options.shuffle, .drop_last = options.drop_last}))),
        schedule_(accelerator, *inner_, options, inputs.total_steps),
        recorder_(wants_times() ? std::make_unique<tandem::trace::Recorder>() : nullptr),
        progress_(shows_progress(), inputs.total_steps, recorder_.get()),
        tracking_(accelerator, options, recorder_.get()) {
    if (options.cuda_graphs)
      compiled_.emplace(accelerator.compile_step(std::function<Losses(const at::Tensor&, const at::Tensor&)>(
          [this](const at::Tensor& in, const at::Tensor& out) { return compute_step(in, out); })));
  }

  Outcome run() {
    resume();
    if (stop_is_asked()) throw tandem::Cancelled("interrupted before the first step");
    if (accelerator_.is_main()) inputs_.log->begin(outcome_.steps);
    tracking_.begin(options_, outcome_.steps);
    if (inputs_.checkpoint) log_event("resumed", outcome_.resumed_from);
    throughput_.start();
    model_->train();
    if (options_.profile.directory.empty())
      run_epochs();
    else
      run_epochs_in_profile();
    throughput_.pause();
    progress_.clear();
    if (compiled_) {
      outcome_.replayed_steps = compiled_->replays();
      outcome_.not_replayed = compiled_->reason();
    }
    finish();
    return outcome_;
  }

 private:
  static std::shared_ptr<Net> initial_net(const Options& options, const Inputs& inputs) {
    auto net = inputs.task->make_net();
    if (!options.init_weights.empty()) set_weights(*net, inputs.initial_weights, options.init_weights);
    return net;
  }

  bool shows_progress() const { return accelerator_.is_main() && options_.progress; }

  // A profile has a recorder of its own, and a thread has one only.
  bool wants_times() const {
    return (shows_progress() || !options_.log_with.empty()) && options_.profile.directory.empty();
  }

  bool done() const {
    return outcome_.interrupted || epoch_ >= options_.epochs || outcome_.steps >= inputs_.total_steps;
  }

  void run_epochs() {
    while (!done()) run_epoch();
  }

  // All ranks fail alike.
  void run_epochs_in_profile() {
    bool trained = false;
    try {
      outcome_.profile = accelerator_.profile(options_.profile, [&] {
        run_epochs();
        trained = true;
      });
    } catch (const tandem::Cancelled&) {
      throw;
    } catch (const tandem::Error& error) {
      if (!trained) throw;
      outcome_.failed_profile = true;
      count_as_unwritten(std::string("--profile ") + error.what());
    }
  }

  void run_epoch() {
    for (auto& [samples, targets] : loader_) {
      {
        auto step = accelerator_.accumulate(model_);
        train_step(samples, targets);
      }
      save_if_due();
      if (done()) return;
    }
    for (std::int64_t i = loader_.steps_without_batch(); i > 0 && !done(); --i) {
      const auto nothing = on_device(inputs_.task->train_set().get_batch({}));
      {
        auto step = accelerator_.accumulate_and_close(model_);
        train_step(nothing.data, nothing.target);
      }
      save_if_due();
    }
    if (done()) return;  // as ranks did above whose last step had a batch
    if (schedule_.wants_loss())
      schedule_.end_epoch(mean_over_ranks(std::exchange(epoch_loss_, {}), std::exchange(epoch_batches_, 0)));
    epoch_ += 1;
  }

  torch::data::Example<> on_device(torch::data::Example<> batch) const {
    return tandem::data::to_device(std::move(batch), accelerator_.device());
  }

  // An empty batch only answers the other ranks' reductions.
  void train_step(const at::Tensor& inputs, const at::Tensor& targets) {
    const std::int64_t samples = inputs.size(0);
    const auto [loss, norm] = compiled_ ? (*compiled_)(inputs, targets) : compute_step(inputs, targets);
    window_loss_ = window_loss_.defined() ? window_loss_ + loss : loss;
    window_batches_ += samples > 0 ? 1 : 0;
    window_samples_ += samples;
    if (accelerator_.sync_gradients()) end_update(norm);
    schedule_.step();  // after the log, which has the rate of the update just made
  }

  // ---- checkpoints

  // A checkpoint is due after the last update too. Collective.
  void save_if_due() {
    if (options_.launch.checkpoints.directory.empty() || outcome_.steps == saved_at_) return;
    const bool last = outcome_.interrupted || outcome_.steps >= inputs_.total_steps;
    if (!last && !(options_.save_every && outcome_.steps % *options_.save_every == 0)) return;
    throughput_.pause();
    saved_at_ = outcome_.steps;
    state_.steps = outcome_.steps;
    state_.epoch = epoch_;
    state_.flags = options_.flags;
    state_.epoch_losses = accelerator_.gather_objects(epoch_loss_.defined() ? epoch_loss_.item<double>() : 0.0);
    state_.epoch_batches = accelerator_.gather_objects(epoch_batches_);
    // The one before may have failed by now; this one is tried all the same.
    warn_of_failed_save([&] { accelerator_.wait_for_saves(); });
    outcome_.failed_save.clear();
    warn_of_failed_save([&] {
      outcome_.saved_to = accelerator_.save_state({}, {.background = true});
      if (accelerator_.is_main()) unsaved_.saving(outcome_.steps, outcome_.saved_to);
      log_event("checkpoint", outcome_.saved_to);
    });
    throughput_.resume();
  }

  // A training is worth more than a checkpoint of it. All ranks fail alike.
  template <class Save>
  void warn_of_failed_save(const Save& save) {
    try {
      save();
    } catch (const tandem::CheckpointError& error) {
      outcome_.failed_save = error.what();
      outcome_.saved_to.clear();
      warn(outcome_.failed_save + "; training goes on");
    }
  }

  // One thing that cannot be written must not cost what else can.
  void count_as_unwritten(const std::string& problem) {
    outcome_.unwritten.push_back(problem);
    warn(problem);
  }

  void warn(const std::string& text) const {
    const auto& on_warning = accelerator_.state().config.on_warning;
    if (accelerator_.is_main() && on_warning) on_warning(text);
  }

  void log_event(const std::string& name, const std::string& detail) {
    if (tracking_.enabled()) tracking_.trackers().log_event(name, detail, outcome_.steps);
  }

  void resume() {
    accelerator_.register_for_checkpointing(state_);
    if (!inputs_.checkpoint) return;
    outcome_.resumed_from =
        accelerator_.load_state(*inputs_.checkpoint, {.optimizer_options = options_.optimizer_options});
    outcome_.steps = outcome_.resumed_steps = saved_at_ = state_.steps;
    outcome_.epoch = epoch_ = state_.epoch;
    if (accelerator_.is_main()) unsaved_.saving(outcome_.steps, outcome_.resumed_from);
    // Ranks that there are not any more leave their sums to the others.
    double loss = 0;
    const auto ranks = static_cast<std::size_t>(accelerator_.world_size());
    for (auto r = static_cast<std::size_t>(accelerator_.rank()); r < state_.epoch_losses.size(); r += ranks) {
      loss += state_.epoch_losses[r];
      epoch_batches_ += state_.epoch_batches[r];
    }
    if (schedule_.wants_loss())
      epoch_loss_ = at::scalar_tensor(loss, at::dtype(at::kFloat).device(accelerator_.device()));
  }

  // ---- a step

  // What of a step the device does.
  Losses compute_step(const at::Tensor& inputs, const at::Tensor& targets) {
    const at::Tensor scores = model_(inputs);
    const at::Tensor loss = inputs.size(0) > 0 ? F::cross_entropy(scores, targets.view(-1)) : scores.sum();
    accelerator_.backward(loss);
    at::Tensor norm;
    if (wants_norm())
      norm = accelerator_.clip_grad_norm_(model_,
                                          options_.clip_grad_norm.value_or(std::numeric_limits<double>::infinity()));
    optimizer_.step();
    optimizer_.zero_grad();
    return {loss.detach(), norm};
  }

  bool wants_norm() const {
    // A recorded step goes on as it was recorded.
    return options_.clip_grad_norm || !options_.log_json.empty() || (compiled_ && tracking_.enabled()) ||
           tracking_.wants(outcome_.steps + 1);
  }

  void end_update(const at::Tensor& norm) {
    outcome_.steps += 1;
    outcome_.epoch = epoch_;
    if (accelerator_.is_main()) unsaved_.made(outcome_.steps);
    if (outcome_.steps == outcome_.resumed_steps + 1) outcome_.metrics.startup_seconds = seconds_since_process_start();
    const double rate = throughput_.update(window_samples_ * accelerator_.world_size());
    if (!options_.log_json.empty()) log_update(norm.item<double>(), rate);
    tracking_.end_update({.step = outcome_.steps,
                          .epoch = epoch_,
                          .loss_sum = window_loss_,
                          .batches = window_batches_,
                          .samples = window_samples_,
                          .grad_norm = norm,
                          .lr = learning_rate()});
    progress_.count(window_samples_ * accelerator_.world_size());
    if (progress_.due())
      progress_.show(epoch_, outcome_.steps,
                     window_loss_.item<double>() / static_cast<double>(std::max<std::int64_t>(window_batches_, 1)));
    if (schedule_.wants_loss()) {
      epoch_loss_ = epoch_loss_.defined() ? epoch_loss_ + window_loss_ : window_loss_;
      epoch_batches_ += window_batches_;
    }
    window_loss_.reset();
    window_batches_ = 0;
    window_samples_ = 0;
    outcome_.interrupted = stop_is_asked();
  }

  // One rank sees the signal first; all must stop at the same place. Collective.
  bool stop_is_asked() {
    if (apps::interrupted()) accelerator_.set_trigger();
    return accelerator_.check_trigger();
  }

  void log_update(double norm, double rate) {
    const double loss = mean_over_ranks(window_loss_, window_batches_);
    if (!accelerator_.is_main()) return;
    const std::string problem = inputs_.log->write({.step = outcome_.steps,
                                                    .epoch = epoch_,
                                                    .loss = loss,
                                                    .grad_norm = norm,
                                                    .lr = learning_rate(),
                                                    .samples_per_second = rate});
    if (!problem.empty()) warn("--log-json " + problem + "; training goes on");
  }

  double learning_rate() const { return inner_->param_groups().front().options().get_lr(); }

  // The mean of the losses of all ranks' batches, of which this rank has the sum and the number. Collective.
  double mean_over_ranks(const at::Tensor& loss_sum, std::int64_t batches) {
    const std::vector<double> mine{loss_sum.item<double>(), static_cast<double>(batches)};
    const at::Tensor all = accelerator_.reduce(at::tensor(mine, at::kDouble).to(accelerator_.device()));
    return all[0].item<double>() / all[1].item<double>();
  }

  void finish() {
    tracking_.end_training();
    // The weights first: they are what an interrupted user waits for.
    if (accelerator_.is_main() && inputs_.weights) write_weights();
    warn_of_failed_save([&] { accelerator_.wait_for_saves(); });
    const auto mean = outcome_.interrupted ? std::nullopt : judge_test_set();
    outcome_.interrupted = !mean;
    if (!accelerator_.is_main()) return;
    auto& metrics = outcome_.metrics;
    metrics.judged = mean.has_value();
    metrics.verdict = inputs_.task->verdict(mean.value_or(std::numeric_limits<double>::quiet_NaN()));
    if (tracking_.enabled() && metrics.judged) tracking_.log_verdict(metrics.verdict);
    metrics.train_seconds = throughput_.train_seconds();
    metrics.samples_per_second = throughput_.samples_per_second();
    metrics.peak_rss_mb = peak_rss_mb();
    if (wants_sample()) metrics.sample = sample();
    if (apps::interrupted()) {
      outcome_.interrupted = true;
      metrics.sample.clear();  // it may be cut
    }
    tracking_.finish(outcome_.interrupted, metrics);
    const std::string problem = inputs_.log->finish(metrics, apps::interrupted);
    if (problem.empty()) return;
    if (outcome_.interrupted)  // Ctrl-C ends a reader in the same pipeline too
      warn("--log-json " + problem);
    else
      outcome_.unwritten.push_back("--log-json " + problem);
  }

  void write_weights() {
    try {
      save_weights(model_, options_.save_weights, *inputs_.weights);
      unsaved_.wrote_weights();
    } catch (const tandem::Error& error) {
      count_as_unwritten(std::string("--save-weights ") + error.what());
    }
  }

  bool wants_sample() const {
    return !outcome_.interrupted && !(options_.quiet && options_.log_json.empty() && !tracking_.enabled());
  }

  std::string sample() const {
    const auto precision = accelerator_.autocast();
    return inputs_.task->sample(*net_);
  }

  // The mean over the test set, of which all ranks together take every sample once; nothing when a stop is asked for.
  // Collective.
  std::optional<double> judge_test_set() {
    const torch::NoGradGuard no_grad;
    model_->eval();
    const bool split = options_.launch.data_loader.split_batches;
    auto loader = accelerator_.prepare(
        tandem::data::DataLoader(inputs_.task->test_set(),
                                 {.batch_size = inputs_.task->test_batch() * (split ? accelerator_.world_size() : 1)}));
    const auto classes = inputs_.task->classes();
    std::optional<ClassReport> report;
    if (tracking_.enabled() && !classes.empty()) report.emplace();
    double sum = 0;
    std::int64_t seen = 0;
    const auto take = [&](const at::Tensor& inputs, const at::Tensor& targets) {
      const at::Tensor scores = model_(inputs);
      const at::Tensor all = accelerator_.gather_for_metrics(inputs_.task->judge(scores, targets));
      if (report) report->add(accelerator_.gather_for_metrics(scores), accelerator_.gather_for_metrics(targets));
      sum += all.sum(at::kDouble).item<double>();
      seen += all.size(0);
    };
    for (auto& [samples, targets] : loader) {
      if (stop_is_asked()) return std::nullopt;
      take(samples, targets);
    }
    // The other ranks' last step, of which they keep all when this rank has no batch.
    const auto nothing = on_device(inputs_.task->test_set().get_batch({}));
    for (std::int64_t i = loader.steps_without_batch(); i > 0; --i) {
      if (stop_is_asked()) return std::nullopt;
      take(nothing.data, nothing.target);
    }
    if (report && tracking_.trackers().recording())
      report->log(tracking_.trackers(), inputs_.task->test_set(), classes, tracking_.step());
    return sum / static_cast<double>(seen);
  }

  tandem::Accelerator& accelerator_;
  const Options& options_;
  const Inputs& inputs_;
  Unsaved& unsaved_;
  std::shared_ptr<Net> net_;
  std::unique_ptr<torch::optim::Optimizer> inner_;
  Model model_;
  tandem::optim::AcceleratedOptimizer optimizer_;
  std::optional<tandem::CompiledStep<std::function<Losses(const at::Tensor&, const at::Tensor&)>>> compiled_;
  Loader loader_;
  Schedule schedule_;
  TrainingState state_;
  std::int64_t saved_at_ = 0;                          // updates that the last checkpoint has
  std::unique_ptr<tandem::trace::Recorder> recorder_;  // null: nobody wants the times
  Progress progress_;
  Tracking tracking_;
  Throughput throughput_;
  Outcome outcome_;
  std::int64_t epoch_ = 0;
  at::Tensor window_loss_;  // sum of the open window's losses on this rank
  std::int64_t window_batches_ = 0, window_samples_ = 0;
  at::Tensor epoch_loss_;  // the same of the epoch's closed windows, for a schedule that wants it
  std::int64_t epoch_batches_ = 0;
};

}  // namespace

Outcome train_on_rank(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs,
                      Unsaved& unsaved) {
  return Trainer(accelerator, options, inputs, unsaved).run();
}

}  // namespace train
