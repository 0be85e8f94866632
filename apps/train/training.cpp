// The training loop. What it needs beside has files of its own: inputs (what is read before), optimizer and schedule,
// checkpoints, records (what is told), evaluation, weights.
#include "training.h"

#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "checkpoints.h"
#include "class_names.h"
#include "common/interrupt.h"
#include "evaluation.h"
#include "io/model_weights.h"
#include "judging.h"
#include "losses.h"
#include "optimizer.h"
#include "printable.h"
#include "records.h"
#include "schedule.h"
#include "stop.h"
#include "warn.h"
#include "weights.h"

namespace train {
namespace {

using LossAndNorm = std::pair<at::Tensor, at::Tensor>;  // of a step; the norm is its gradient's
using Step = std::function<LossAndNorm(const at::Tensor&, const at::Tensor&)>;

tandem::data::DataLoaderOptions loader_options(const Options& options, const Task& task) {
  tandem::data::DataLoaderOptions loader{.batch_size = options.batch_size,
                                         .drop_last = options.drop_last,
                                         .sampler = task.sampler(),
                                         .workers = options.data.workers.value_or(task.workers())};
  loader.shuffle = options.data.shuffle && !loader.sampler;
  return loader;
}

class Trainer {
 public:
  Trainer(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Unsaved& unsaved)
      : accelerator_(accelerator),
        options_(options),
        inputs_(inputs),
        unsaved_(unsaved),
        net_(make_initial_net(options, inputs)),
        inner_(make_optimizer(options, *net_)),
        model_(accelerator.prepare(net_)),
        optimizer_(accelerator.prepare(*inner_)),
        loader_(inputs.task->train_set().prepare(accelerator, loader_options(options, *inputs.task))),
        average_(make_average(options, *net_)),
        schedule_(accelerator, *inner_, options, inputs.total_steps, inputs.warmup_steps),
        records_(accelerator, options, inputs, unsaved),
        checkpoints_(accelerator, options, inputs, records_, state_),
        judging_(accelerator, options, inputs, {model_, average_.get()}, records_, state_) {
    if (average_) accelerator.register_for_checkpointing(*average_);
    compile_step();
  }

  Outcome run() {
    try {
      return run_to_end();
    } catch (const tandem::Cancelled&) {
      throw;
    } catch (...) {
      records_.abandon();
      throw;
    }
  }

 private:
  // CPU ranks have no graphs, which is news only to who asks for them.
  void compile_step() {
    const bool automatic = options_.cuda_graphs == CudaGraphs::automatic;
    if (options_.cuda_graphs == CudaGraphs::off || (automatic && accelerator_.device().is_cpu())) return;
    replayed_.emplace(accelerator_.compile_step(
        Step([this](const at::Tensor& in, const at::Tensor& out) { return compute_step(in, out); }),
        {.keep_faster = automatic}));
  }

  Outcome run_to_end() {
    if (checkpoints_.begin()) go_on();
    if (stop_is_asked(accelerator_)) throw tandem::Cancelled("interrupted before the first step");
    records_.begin(state_.steps, state_.judged_at, checkpoints_.resumed_from());
    model_->train();
    if (!done()) judging_.after_update(state_.epoch);  // where an interrupted training was not judged any more
    if (options_.profile.directory.empty())
      run_epochs();
    else
      run_epochs_in_profile();
    records_.end_training();
    return finish();
  }

  void go_on() {
    records_.tell("goes on from step " + std::to_string(state_.steps) + " of " + checkpoints_.resumed_from() +
                  why_nothing_is_left());
    last_epoch_ = state_.epoch;
    if (schedule_.wants_loss()) epoch_losses_ = checkpoints_.resumed_losses();
  }

  bool last_update_made() const {
    return stopped_ || judging_.interrupted() || judging_.ends_training() || state_.steps >= inputs_.total_steps;
  }
  bool done() const { return last_update_made() || state_.epoch >= options_.epochs; }

  // For people, after what it goes on from; empty: something is left.
  std::string why_nothing_is_left() const {
    if (!done()) return {};
    const std::string begin = ": nothing is left to train, as ";
    if (judging_.ends_training()) return begin + "--early-stop has ended it; use another --early-stop to go on";
    const bool by_steps = options_.max_steps == inputs_.total_steps;
    const std::string flag = by_steps ? "--max-steps" : "--epochs";
    return begin + "it has " + counted(state_.steps, "update") + " and " + flag + " " +
           std::to_string(by_steps ? *options_.max_steps : options_.epochs) +
           (by_steps ? "" : " makes " + std::to_string(inputs_.total_steps)) + "; use a larger " + flag + " to go on";
  }

  void run_epochs() {
    while (!done()) run_epoch();
  }

  // All ranks fail alike.
  void run_epochs_in_profile() {
    bool trained = false;
    try {
      profile_ = accelerator_.profile(options_.profile, [&] {
        run_epochs();
        trained = true;
      });
    } catch (const tandem::Cancelled&) {
      throw;
    } catch (const tandem::Error& error) {
      if (!trained) throw;
      failed_profile_ = true;
      count_as_unwritten(std::string("--profile ") + error.what());
    }
  }

  void run_epoch() {
    for (auto& [samples, targets] : loader_) {
      {
        auto window = accelerator_.accumulate(model_);
        train_step(samples, targets);
      }
      end_step();
      if (done()) return;
    }
    for (std::int64_t i = loader_.steps_without_batch(); i > 0 && !done(); --i) {
      const Batch nothing = tandem::data::to_device(inputs_.task->train_set().none(), accelerator_.device());
      {
        auto window = accelerator_.accumulate_and_close(model_);
        train_step(nothing.data, nothing.target);
      }
      end_step();
    }
    if (done()) return;  // as ranks did above whose last step had a batch
    if (schedule_.wants_loss()) schedule_.end_epoch(mean_over_ranks(accelerator_, std::exchange(epoch_losses_, {})));
    state_.epoch += 1;
    if (done()) return;
    judging_.after_epoch(last_epoch_);
    checkpoints_.save_if_due(last_update_made(), epoch_losses_);
  }

  // Between micro-batches.
  void end_step() {
    if (!last_update_made()) judging_.after_update(state_.epoch);
    checkpoints_.save_if_due(last_update_made(), epoch_losses_);
  }

  // An empty batch only answers the other ranks' reductions.
  void train_step(const at::Tensor& inputs, const at::Tensor& targets) {
    const std::int64_t samples = inputs.size(0);
    const auto [loss, norm] = replayed_ ? (*replayed_)(inputs, targets) : compute_step(inputs, targets);
    window_.add({loss, samples > 0 ? 1 : 0});
    window_samples_ += samples;
    if (options_.launch.exact)
      if (const auto mean = accelerator_.window_mean(loss, samples > 0 ? 1 : 0))
        window_.add({at::zeros_like(loss), 0, *mean, 1});
    tell_of_graphs();
    if (accelerator_.sync_gradients()) end_update(norm);
    schedule_.step();  // after the records, which have the rate of the update just made
  }

  // What of a step the device does.
  LossAndNorm compute_step(const at::Tensor& inputs, const at::Tensor& targets) {
    const at::Tensor scores = model_(inputs);
    const at::Tensor loss = inputs.size(0) > 0 ? inputs_.task->loss(scores, targets) : scores.sum();
    accelerator_.backward(loss);
    at::Tensor norm;
    if (options_.clip_grad_norm || records_.wants_norm(state_.steps + 1, replayed_.has_value()))
      norm = accelerator_.clip_grad_norm_(model_,
                                          options_.clip_grad_norm.value_or(std::numeric_limits<double>::infinity()));
    optimizer_.step();
    optimizer_.zero_grad();
    return {loss.detach(), norm};
  }

  void end_update(const at::Tensor& norm) {
    state_.steps += 1;
    last_epoch_ = state_.epoch;
    if (average_) average_->update();
    records_.end_update({.step = state_.steps,
                         .epoch = state_.epoch,
                         .losses = window_,
                         .samples = std::exchange(window_samples_, 0),
                         .grad_norm = norm,
                         .lr = inner_->param_groups().front().options().get_lr()});
    if (schedule_.wants_loss()) epoch_losses_.add(window_);
    window_ = {};
    stopped_ = stop_watch_.is_asked(accelerator_);
  }

  // One thing that cannot be written must not cost what else can.
  void count_as_unwritten(const std::string& problem) {
    unwritten_.push_back(problem);
    warn(accelerator_, problem);
  }

  void write_weights() {
    try {
      const auto metadata = metadata_of_weights(options_, inputs_.classes);
      save_weights(*model_, options_.save_weights, *inputs_.weights, metadata);
      written_.push_back("weights: " + options_.save_weights);
      if (average_) {
        const auto averaged = average_->swap_in();
        const std::string path = averaged_path(options_.save_weights);
        tandem::io::save_safetensors(path, tandem::io::weights_of(*model_), metadata);
        written_.push_back("averaged weights: " + path);
      }
      unsaved_.wrote_weights();
      try_to_write_classes(accelerator_, options_.save_weights, inputs_.classes);
    } catch (const tandem::Error& error) {
      count_as_unwritten(std::string("--save-weights ") + error.what());
    }
  }

  void warn_of_no_numbers(const Verdict& verdict) {
    for (const auto& [name, value] : verdict.figures)
      if (name.ends_with("loss") && !std::isfinite(value)) {
        warn(accelerator_, "the " + name +
                               " is no number: the training has diverged; use a smaller --lr, or "
                               "--clip-grad-norm 1");
        break;
      }
    if (!options_.save_best.empty() && judging_.best().empty())
      warn(accelerator_, "--save-best: " + options_.save_best + " never was a number; no best weights were kept");
  }

  Outcome finish() {
    // The weights first: they are what an interrupted user waits for.
    if (accelerator_.is_main() && inputs_.weights) write_weights();
    checkpoints_.wait();
    std::optional<Verdict> verdict;
    if (!stopped_ && !judging_.interrupted()) verdict = judging_.at_end(last_epoch_);
    if (verdict) warn_of_no_numbers(*verdict);
    for (const std::string& problem : judging_.unwritten()) unwritten_.push_back(problem);
    Outcome outcome{.interrupted = !verdict,
                    .steps = state_.steps,
                    .epoch = last_epoch_,
                    .saved_to = checkpoints_.saved_to(),
                    .failed_save = checkpoints_.failed(),
                    .written = written_,
                    .unwritten = unwritten_,
                    .profile = profile_,
                    .failed_profile = failed_profile_,
                    .best = judging_.best(),
                    .ended_early = judging_.ends_training() && state_.steps < inputs_.total_steps};
    outcome.graphs = use_of_graphs();
    if (accelerator_.is_main()) close_records(outcome, verdict);
    return outcome;
  }

  // Once it is known.
  void tell_of_graphs() {
    if (told_of_graphs_ || !replayed_ || !replayed_->times()) return;
    told_of_graphs_ = true;
    const auto& [called, replayed, replays] = *replayed_->times();
    char text[160];
    std::snprintf(text, sizeof text, "steps are %s: %.3g ms called, %.3g ms replayed as CUDA graphs (%.2f x)",
                  replays ? "replayed" : "called", 1e3 * called, 1e3 * replayed, called / replayed);
    records_.tell(text);
  }

  // For people; empty: none can be, or it was told. Too short a training for --cuda-graphs auto has nothing to tell.
  std::string use_of_graphs() const {
    if (!replayed_ || told_of_graphs_) return {};
    const std::string& why = replayed_->reason();
    if (options_.cuda_graphs == CudaGraphs::automatic)
      return why.empty() ? why : "steps were called, not replayed as CUDA graphs: " + why;
    return counted(replayed_->replays(), "step") + (replayed_->replays() == 1 ? " was" : " were") +
           " replayed as CUDA graphs" + (why.empty() ? why : "; the last was not: " + why);
  }

  // The end of the records, on rank 0. `verdict`: nothing when training or evaluation was interrupted.
  void close_records(Outcome& outcome, const std::optional<Verdict>& verdict) {
    outcome.metrics = records_.measured();
    auto& metrics = outcome.metrics;
    metrics.judged = verdict.has_value();
    metrics.left_out = inputs_.task->left_out();
    metrics.verdict = verdict.value_or(not_judged(*inputs_.task));
    if (metrics.judged && records_.wants_sample()) {
      const auto precision = accelerator_.autocast();
      metrics.sample = inputs_.task->sample(*net_);
    }
    if (apps::interrupted()) {
      outcome.interrupted = true;
      metrics.sample.clear();  // it may be cut
    }
    using Status = tandem::io::RunStatus;
    const Status status = outcome.interrupted         ? Status::interrupted
                          : outcome.unwritten.empty() ? Status::finished
                                                      : Status::failed;
    const std::string problem = records_.finish(metrics, status);
    if (problem.empty()) return;
    if (outcome.interrupted)  // Ctrl-C ends a reader in the same pipeline too
      warn(accelerator_, "--log-json " + problem);
    else
      outcome.unwritten.push_back("--log-json " + problem);
  }

  tandem::Accelerator& accelerator_;
  const Options& options_;
  const Inputs& inputs_;
  Unsaved& unsaved_;
  std::shared_ptr<Net> net_;
  std::unique_ptr<torch::optim::Optimizer> inner_;
  tandem::nn::Model<Net> model_;
  tandem::optim::AcceleratedOptimizer optimizer_;
  std::optional<tandem::CompiledStep<Step>> replayed_;  // nothing: steps are only called
  bool told_of_graphs_ = false;
  Samples::Loader loader_;
  std::unique_ptr<tandem::optim::ExponentialMovingAverage> average_;  // null: none
  Schedule schedule_;
  Records records_;
  TrainingState state_;  // how far it is
  Checkpoints checkpoints_;
  Judging judging_;
  std::int64_t last_epoch_ = 0;  // that of the last update
  bool stopped_ = false;         // by a signal
  StopWatch stop_watch_;
  Losses window_;  // of the accumulation window that is open
  std::int64_t window_samples_ = 0;
  std::vector<std::string> written_, unwritten_;
  tandem::Profile profile_;
  bool failed_profile_ = false;
  Losses epoch_losses_;  // of the epoch's closed windows, for a schedule that wants them
};

}  // namespace

// Each machine reads its own disk. Collective.
static void check_same_data(tandem::Accelerator& accelerator, const Inputs& inputs) {
  if (accelerator.state().ranks_of_nodes.size() < 2) return;
  const auto all = accelerator.gather_objects(inputs.data);
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank] != all[0])
      throw tandem::ConfigError("the data differs between machines: rank 0 has " + all[0] + ", rank " +
                                std::to_string(rank) + " has " + all[rank]);
}

Outcome train_on_rank(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Unsaved& unsaved,
                      const std::function<void()>& on_ready) {
  check_same_data(accelerator, inputs);
  Trainer trainer(accelerator, options, inputs, unsaved);
  if (on_ready && accelerator.is_local_main()) on_ready();
  return trainer.run();
}

}  // namespace train
