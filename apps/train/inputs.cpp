#include "inputs.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "batch_size.h"
#include "batches.h"
#include "class_names.h"
#include "comm/error_text.h"
#include "common/interrupt.h"
#include "data/prepare_loader.h"
#include "going_on.h"
#include "io/model_weights.h"
#include "io/output_file.h"
#include "judging.h"
#include "model_flags.h"
#include "printable.h"
#include "resumed_flags.h"
#include "stored_description.h"
#include "tandem/io/checkpoint_series.h"
#include "weights.h"

namespace train {
namespace {

void count_updates(const Options& options, const tandem::data::EpochPlan& plan, Inputs& inputs) {
  const std::int64_t epoch = updates_of_epoch(options, plan);
  const std::int64_t all_epochs = options.epochs * epoch;
  inputs.total_steps = std::min(all_epochs, options.max_steps.value_or(all_epochs));
  inputs.warmup_steps = options.warmup_steps;
  const bool by_epochs = options.warmup_epochs.value_or(0) > 0;
  if (by_epochs)
    inputs.warmup_steps = static_cast<std::int64_t>(std::llround(*options.warmup_epochs * static_cast<double>(epoch)));
  if (inputs.warmup_steps == 0 || inputs.warmup_steps < inputs.total_steps) return;
  throw tandem::ConfigError((by_epochs ? "--warmup-epochs, of " : "--warmup-steps ") +
                            (by_epochs ? counted(inputs.warmup_steps, "update") + ", leaves"
                                       : std::to_string(inputs.warmup_steps) + " leaves") +
                            " nothing of the training's " + counted(inputs.total_steps, "update") + "; use fewer");
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
                            counted(total_steps, "update"));
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
  check_is_one_checkpoint("--init-weights", options.init_weights);
  try {
    return std::make_shared<tandem::io::StoredWeights>(tandem::io::read_weights_at(options.init_weights));
  } catch (const tandem::CheckpointError& error) {
    throw tandem::ConfigError(std::string("--init-weights: ") + error.what());
  }
}

// Why the head of --init-weights is not that of the task, though it has its sizes; empty: it is, as far as one knows.
std::string other_head(const Options& options, const Task& task) {
  if (options.init_weights.empty()) return {};
  const auto before = stored_classes(options.init_weights);
  const auto now = task.classes();
  if (!before || *before == now) return {};
  if (before->empty()) return "the weights' is not for classes";
  if (std::ssize(*before) != task.outputs()) return {};  // its sizes say so
  if (now.empty()) return "the weights' is for classes, and the data has numbers to predict";
  return "its classes are others: " + difference(*before, now);
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
    throw tandem::ConfigError(
        begin + "gives scores of sizes " + c10::str(scores.sizes()) + " for a batch of one; the data has " +
        (task.classes().empty() ? counted(outputs, "number") + " to predict" : counted(outputs, "class", "es")) +
        ", for which they must be [1, " + std::to_string(outputs) + "]");
}

bool suits_all_sizes(ModelKind model) { return model != ModelKind::vit_b_16 && model != ModelKind::cnn; }

// With a network of its own, where there is something to try, for what the ranks would find after the first output.
void try_weights(const Options& options, Inputs& inputs) {
  const FineTuning& fine_tuning = options.fine_tuning;
  if (options.script.empty() && suits_all_sizes(options.model) && !inputs.initial_weights.stored &&
      fine_tuning.freeze.empty() && fine_tuning.lr_scale.empty())
    return;
  const auto net = inputs.task->make_net();
  if (!options.script.empty()) try_script(options, *inputs.task, *net);
  if (inputs.initial_weights.stored) {
    const auto report = set_weights(*net, inputs.initial_weights, options);
    inputs.weights_table = describe(report, inputs.initial_weights, options.init_weights);
    if (std::string made = half_made(report, *net); !made.empty()) inputs.warnings.push_back(std::move(made));
  }
  freeze(*net, fine_tuning);
  group_parameters(*net, fine_tuning);
}

// Batch norm has no variance of a single number; other networks, and pictures that are still larger where it is, train
// on one sample. So one is tried, where a rank gets one.
void check_trains_on_one(const Options& options, const Task& task, const tandem::data::EpochPlan& plan) {
  const std::string why = is_text_model(options.model) ? std::string() : why_batch_of_one(options, plan);
  if (why.empty()) return;
  const auto net = task.make_net();
  net->train();
  try {
    const torch::NoGradGuard no_grad;
    net->forward(task.example().data);
  } catch (const std::exception&) {
    const std::string problem = last_line(tandem::text_of(std::current_exception()));
    throw tandem::ConfigError(batch_flag(options) + ": " + why + ", on which " +
                              (options.script.empty() ? name_of(options.model) : options.script) +
                              " cannot be trained (" + problem + "); use " +
                              (why.starts_with("the last") ? "another size, or --drop-last" : "a larger one"));
  }
}

// What of the data may not be as it was meant; empty: nothing.
std::string classes_without_samples(const Options& options, const Task& task) {
  const auto counts = task.samples_of_classes();
  const auto names = task.classes();
  FewNames without;
  for (std::size_t i = 0; i < counts.size(); ++i)
    if (counts[i] == 0) without.add(names[i]);
  if (without.count() == 0) return {};
  return "no sample to train on in " + std::to_string(without.count()) + " of " +
         counted(std::ssize(names), "class", "es") + ": " + without.text() +
         (options.data.limit          ? "; a larger --limit-train-samples has some"
          : options.data.file.empty() ? ""
                                      : "; labels count from 0 to the largest one");
}

}  // namespace

std::shared_ptr<Net> make_initial_net(const Options& options, const Inputs& inputs) {
  auto net = inputs.task->make_net();
  if (inputs.initial_weights.stored) set_weights(*net, inputs.initial_weights, options);
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
  inputs.initial_weights.stored = read_weights(options);
  check_is_there(options.data);
  inputs.task = make_task(options);
  inputs.classes = describe_classes(options, *inputs.task);
  inputs.data = inputs.task->data();
  inputs.initial_weights.other_head = other_head(options, *inputs.task);
  check_figures(options, *inputs.task);
  try_weights(options, inputs);
  if (auto missing = classes_without_samples(options, *inputs.task); !missing.empty())
    inputs.warnings.push_back(std::move(missing));
  if (options.finds_batch_size) inputs.batch_size = find_batch_size(options, inputs);
  const auto samples = static_cast<std::int64_t>(inputs.task->train_set().size());
  check_fills_a_step(options, samples);
  const auto plan = plan_of(options, samples);
  check_trains_on_one(options, *inputs.task, plan);
  inputs.repeated = what_is_repeated(plan);
  count_updates(options, plan, inputs);
  check_profile(options, inputs.total_steps);
  make_folder("--project-dir", options.project_dir, "log.jsonl");
  make_folder("--checkpoint-dir", options.launch.checkpoints.directory, "checkpoint");
  const bool writes = options.machine.node == 0;  // others have the same files, or none
  if (writes) inputs.series = begin_series(options.launch.checkpoints.directory);
  const FoundCheckpoint found = options.found ? *options.found : FoundCheckpoint();
  inputs.checkpoint = found.path;
  if (found.path && found.state) check_is_its_own(*found.state, options, inputs);
  if (!found.path && writes) inputs.earlier = earlier_checkpoints(options);
  if (writes) inputs.weights = open_weights(options.save_weights);
  inputs.log = std::make_unique<MetricsLog>(writes ? options.log_json : "");  // last: it may wait for a reader
  return inputs;
}

}  // namespace train
