#include "inputs.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "batch_size.h"
#include "class_names.h"
#include "common/interrupt.h"
#include "data/prepare_loader.h"
#include "io/model_weights.h"
#include "io/output_file.h"
#include "judging.h"
#include "resumed_flags.h"
#include "tandem/data/epoch_plan.h"
#include "tandem/io/checkpoint_series.h"
#include "weights.h"

namespace train {
namespace {

// Before the ranks start, so that nothing is printed of a training that cannot be.
void check_fills_a_step(const Options& options, std::int64_t samples) {
  const bool split = options.launch.data_loader.split_batches;
  const std::int64_t step = options.batch_size * (split ? 1 : options.logical_ranks());
  if (options.drop_last && samples < step)
    throw tandem::ConfigError("the training set of " + std::to_string(samples) +
                              " samples is smaller than a batch of all ranks (" + std::to_string(step) +
                              ") with --drop-last; use a smaller --batch-size");
}

// For people; empty: there are as many samples as a step takes.
std::string what_is_repeated(const Options& options, std::int64_t samples) {
  const auto& loaders = options.launch.data_loader;
  const std::int64_t step = options.batch_size * (loaders.split_batches ? 1 : options.logical_ranks());
  if (samples >= step || options.drop_last || !loaders.even_batches) return {};
  return "a step takes " + std::to_string(step) + " samples, and the training set has " + std::to_string(samples) +
         ": some are repeated in each; use a smaller --batch-size, fewer ranks or --no-even-batches";
}

// Optimizer updates of an epoch, as many as any rank has. Known before the ranks start, for the same reason.
std::int64_t updates_of_epoch(const Options& options, std::int64_t samples) {
  const auto& launch = options.launch;
  const auto& loaders = launch.data_loader;
  const tandem::data::EpochPlan plan({.length = samples,
                                      .batch_size = options.batch_size,
                                      .ranks = options.logical_ranks(),
                                      .drop_last = options.drop_last,
                                      .even_batches = loaders.even_batches,
                                      .split_batches = loaders.split_batches,
                                      .dispatch = loaders.dispatch_batches.value_or(false)});
  const std::int64_t window = launch.gradient_accumulation_steps;
  return (plan.steps(0) + window - 1) / window;
}

void count_updates(const Options& options, std::int64_t samples, Inputs& inputs) {
  const std::int64_t epoch = updates_of_epoch(options, samples);
  const std::int64_t all_epochs = options.epochs * epoch;
  inputs.total_steps = std::min(all_epochs, options.max_steps.value_or(all_epochs));
  inputs.warmup_steps = options.warmup_steps;
  const bool by_epochs = options.warmup_epochs.value_or(0) > 0;
  if (by_epochs)
    inputs.warmup_steps = static_cast<std::int64_t>(std::llround(*options.warmup_epochs * static_cast<double>(epoch)));
  if (inputs.warmup_steps == 0 || inputs.warmup_steps < inputs.total_steps) return;
  throw tandem::ConfigError((by_epochs ? "--warmup-epochs, of " : "--warmup-steps ") +
                            std::to_string(inputs.warmup_steps) + (by_epochs ? " updates, leaves" : " leaves") +
                            " nothing of the training's " + std::to_string(inputs.total_steps) + " updates; use fewer");
}

// Makes the folder of a flag, in which `file` will be written. An empty name is none.
void make_folder(const std::string& flag, const std::string& directory, const std::string& file) {
  if (directory.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(tandem::io::follow_links(directory), error);
  if (error) throw tandem::ConfigError(flag + " '" + directory + "' cannot be made: " + error.message());
  if (tandem::io::is_append_only(directory + "/" + file)) return;  // as logs may be kept
  try {
    tandem::io::check_writable(directory + "/" + file);
  } catch (const tandem::ConfigError& problem) {
    throw tandem::ConfigError(flag + ": " + problem.what());
  }
}

void check_profile(const Options& options, std::int64_t total_steps) {
  const std::string& directory = options.profile.directory;
  if (directory.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(tandem::io::follow_links(directory), error);
  if (error) throw tandem::ConfigError("--profile '" + directory + "' cannot be made: " + error.message());
  if (options.profile.last_step <= total_steps) return;
  throw tandem::ConfigError("--profile-steps " + std::to_string(options.profile.first_step) + ':' +
                            std::to_string(options.profile.last_step) + " goes beyond the training's " +
                            std::to_string(total_steps) + " updates");
}

// The checkpoint that --resume names; nothing when `auto` finds none.
std::optional<std::string> checkpoint_to_resume(const Options& options) {
  const std::string& directory = options.launch.checkpoints.directory;
  if (options.resume.empty()) return std::nullopt;
  if (options.resume == "auto") {
    if (tandem::io::list_checkpoints(directory).empty()) return std::nullopt;
    return "";  // the newest that is not damaged
  }
  std::error_code error;
  if (!std::filesystem::is_directory(options.resume, error))
    throw tandem::ConfigError("--resume '" + options.resume + "' is no directory; name a checkpoint, or auto");
  return options.resume;
}

// The names of `some` that are not in `others`, for people.
std::string names_beyond(const std::vector<std::string>& some, const std::vector<std::string>& others) {
  std::string names;
  for (const std::string& name : some)
    if (std::find(others.begin(), others.end(), name) == others.end())
      names += (names.empty() ? "'" : ", '") + name + "'";
  return names.empty() ? "none" : names;
}

// Otherwise labels would mean other classes than before, and what was trained on could be judged by.
void check_is_its_data(const Options& options, const Inputs& inputs) {
  const auto state = state_of_checkpoint(options.resume, options.launch.checkpoints.directory);
  if (!state) return;
  const auto before = state->classes, now = inputs.task->classes();
  if (!before.empty() && before != now)
    throw tandem::ConfigError("--resume: the data has other classes than the checkpoint: gone are " +
                              names_beyond(before, now) + ", new are " + names_beyond(now, before) +
                              "; begin anew, with --init-weights if you like");
  if (!state->data.empty() && state->data != inputs.data)
    throw tandem::ConfigError("--resume: the data is not that of the checkpoint, which had " + state->data +
                              "; now there are " + inputs.data +
                              ". What was trained on would be judged by: begin anew, with --init-weights if you like, "
                              "or put the data back");
}

std::shared_ptr<tandem::io::CheckpointSeries> begin_series(const std::string& directory) {
  if (directory.empty()) return nullptr;
  try {
    return std::make_shared<tandem::io::CheckpointSeries>(directory);
  } catch (const tandem::CheckpointError& error) {
    throw tandem::ConfigError(std::string("--checkpoint-dir: ") + error.what());
  }
}

std::shared_ptr<tandem::io::OutputFile> open_weights(const std::string& path) {
  if (path.empty()) return nullptr;
  auto file = std::make_shared<tandem::io::OutputFile>(path);
  try {
    file->open(apps::interrupted);
  } catch (const tandem::CheckpointError& error) {
    throw tandem::ConfigError(std::string("--save-weights: ") + error.what());
  }
  if (file->is_open_as(STDOUT_FILENO)) {
    std::fflush(stdout);
    ::dup2(STDERR_FILENO, STDOUT_FILENO);
  }
  return file;
}

std::shared_ptr<const tandem::io::StoredWeights> read_weights(const Options& options) {
  if (options.init_weights.empty()) return nullptr;
  try {
    return std::make_shared<tandem::io::StoredWeights>(tandem::io::read_weights_at(options.init_weights));
  } catch (const tandem::CheckpointError& error) {
    throw tandem::ConfigError(std::string("--init-weights: ") + error.what());
  }
}

// Of an error of TorchScript, what it comes to after the places that led there.
std::string last_line(std::string text) {
  text.erase(text.find_last_not_of('\n') + 1);
  return text.substr(text.rfind('\n') + 1);
}

// A script does not say what it takes and gives before it is called.
void try_script(const Options& options, const Task& task, Net& net) {
  const std::string begin = "--model " + options.script + ": ";
  const Batch example = task.example();
  at::Tensor scores;
  try {
    const torch::NoGradGuard no_grad;
    net.eval();
    scores = net.forward(example.data);
  } catch (const std::exception& error) {
    throw tandem::ConfigError(begin + "does not take inputs of sizes " + c10::str(example.data.sizes()) + ": " +
                              last_line(error.what()));
  }
  const std::int64_t outputs = task.outputs();
  if (scores.dim() != 2 || scores.size(1) != outputs)
    throw tandem::ConfigError(begin + "gives scores of sizes " + c10::str(scores.sizes()) +
                              " for a batch of one; the data has " + std::to_string(outputs) +
                              (!task.classes().empty() ? " classes"
                               : outputs == 1          ? " number to predict"
                                                       : " numbers to predict") +
                              ", for which they must be [1, " + std::to_string(outputs) + "]");
}

bool suits_all_sizes(ModelKind model) { return model != ModelKind::vit_b_16 && model != ModelKind::cnn; }

// With a network of its own, where there is something to try, for what the ranks would find after the first output.
void try_weights(const Options& options, Inputs& inputs) {
  const FineTuning& fine_tuning = options.fine_tuning;
  if (options.script.empty() && suits_all_sizes(options.model) && !inputs.initial_weights &&
      fine_tuning.freeze.empty() && fine_tuning.lr_scale.empty())
    return;
  const auto net = inputs.task->make_net();
  if (!options.script.empty()) try_script(options, *inputs.task, *net);
  if (inputs.initial_weights) {
    const auto report = set_weights(*net, *inputs.initial_weights, options);
    inputs.weights_table = describe(report, options.init_weights);
    inputs.half_made = half_made(report, *net);
  }
  freeze(*net, fine_tuning);
  group_parameters(*net, fine_tuning);
}

}  // namespace

std::shared_ptr<Net> make_initial_net(const Options& options, const Inputs& inputs) {
  auto net = inputs.task->make_net();
  if (inputs.initial_weights) set_weights(*net, *inputs.initial_weights, options);
  freeze(*net, options.fine_tuning);
  return net;
}

std::unique_ptr<tandem::optim::ExponentialMovingAverage> make_average(const Options& options, const Net& net) {
  if (!options.ema) return nullptr;
  return std::make_unique<tandem::optim::ExponentialMovingAverage>(
      net, tandem::optim::ExponentialMovingAverageOptions{.decay = *options.ema});
}

Inputs read_inputs(Options& options) {
  Inputs inputs;
  inputs.initial_weights = read_weights(options);
  inputs.task = make_task(options);
  inputs.classes = describe_classes(options, *inputs.task);
  inputs.data = inputs.task->data();
  check_figures(options, *inputs.task);
  try_weights(options, inputs);
  if (options.finds_batch_size) inputs.batch_size = find_batch_size(options, inputs);
  const auto samples = static_cast<std::int64_t>(inputs.task->train_set().size());
  check_fills_a_step(options, samples);
  inputs.repeated = what_is_repeated(options, samples);
  count_updates(options, samples, inputs);
  check_profile(options, inputs.total_steps);
  make_folder("--project-dir", options.project_dir, "log.jsonl");
  make_folder("--checkpoint-dir", options.launch.checkpoints.directory, "checkpoint");
  const bool writes = options.machine.node == 0;  // others have the same files, or none
  if (writes) inputs.series = begin_series(options.launch.checkpoints.directory);
  inputs.checkpoint = checkpoint_to_resume(options);
  if (inputs.checkpoint) check_is_its_data(options, inputs);
  if (writes) inputs.weights = open_weights(options.save_weights);
  inputs.log = std::make_unique<MetricsLog>(writes ? options.log_json : "");  // last: it may wait for a reader
  return inputs;
}

}  // namespace train
