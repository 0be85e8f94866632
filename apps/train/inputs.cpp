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
#include "comm/error_text.h"
#include "common/interrupt.h"
#include "data/prepare_loader.h"
#include "io/model_weights.h"
#include "io/output_file.h"
#include "judging.h"
#include "model_flags.h"
#include "printable.h"
#include "resumed_flags.h"
#include "stored_description.h"
#include "tandem/data/epoch_plan.h"
#include "tandem/io/checkpoint_series.h"
#include "weights.h"

namespace train {
namespace {

// Before the ranks start, so that nothing is printed of a training that cannot be.
void check_fills_a_step(const Options& options, std::int64_t samples) {
  const std::int64_t step = options.global_batch();
  if (options.drop_last && samples < step)
    throw tandem::ConfigError("the training set of " + counted(samples, "sample") +
                              " is smaller than a batch of all ranks (" + std::to_string(step) +
                              ") with --drop-last; use a smaller --batch-size");
}

tandem::data::EpochPlan plan_of(const Options& options, std::int64_t samples) {
  const auto& loaders = options.launch.data_loader;
  return tandem::data::EpochPlan({.length = samples,
                                  .batch_size = options.batch_size,
                                  .ranks = options.logical_ranks(),
                                  .drop_last = options.drop_last,
                                  .even_batches = loaders.even_batches,
                                  .split_batches = loaders.split_batches,
                                  .dispatch = loaders.dispatch_batches.value_or(false)});
}

// For people; empty: no step takes more samples than there are.
std::string what_is_repeated(const tandem::data::EpochPlan& plan) {
  const std::int64_t samples = plan.options().length;
  std::int64_t taken = 0;
  for (int rank = 0; samples < plan.global_batch_size() && rank < plan.options().ranks; ++rank)
    if (plan.steps(rank) > 0) taken += plan.samples(0, rank);
  if (taken <= samples) return {};
  return "a step takes " + counted(taken, "sample") + ", and the training set has " + std::to_string(samples) +
         ": some are repeated in each; use a smaller --batch-size, fewer ranks or --no-even-batches";
}

// The flag that says how large a batch is, with its value.
std::string batch_flag(const Options& options) {
  for (const auto& [name, value] : options.flags)
    if (const auto* const number = std::get_if<std::int64_t>(&value); number && name == "global-batch-size")
      return "--global-batch-size " + std::to_string(*number);
  return "--batch-size " + std::to_string(options.batch_size) +
         (options.launch.data_loader.split_batches ? " with --split-batches" : "");
}

// Why a rank trains on one sample alone, in a step that will be made; empty: none does.
std::string why_batch_of_one(const Options& options, const tandem::data::EpochPlan& plan) {
  const std::int64_t window = options.launch.gradient_accumulation_steps;
  const std::int64_t made = options.max_steps ? *options.max_steps * window : plan.steps(0);
  for (int rank = 0; rank < plan.options().ranks; ++rank) {
    const std::int64_t last = plan.steps(rank) - 1;
    if (last > 0 && plan.samples(0, rank) == 1) return "a rank's batch has one sample";
    if (last >= 0 && last < made && plan.samples(last, rank) == 1)
      return "the last batch of " + counted(plan.options().length, "sample") + " has one sample" +
             (plan.options().ranks > 1 ? " on a rank" : "");
  }
  return {};
}

// Updates of an epoch, as many as any rank has. Known before the ranks start, for the same reason.
std::int64_t updates_of_epoch(const Options& options, const tandem::data::EpochPlan& plan) {
  const std::int64_t window = options.launch.gradient_accumulation_steps;
  return (plan.steps(0) + window - 1) / window;
}

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
  check_is_one_checkpoint("--resume", options.resume);
  return options.resume;
}

// A few names, for people.
class FewNames {
 public:
  void add(const std::string& name) {
    constexpr int kShown = 10;
    if (++count_ <= kShown)
      text_ += (count_ > 1 ? ", '" : "'") + name + "'";
    else
      more_ = " and " + std::to_string(count_ - kShown) + " more";
  }

  std::int64_t count() const { return count_; }
  std::string text() const { return count_ == 0 ? "none" : text_ + more_; }

 private:
  std::int64_t count_ = 0;
  std::string text_, more_;
};

// The names of `some` that are not in `others`.
FewNames names_beyond(const std::vector<std::string>& some, const std::vector<std::string>& others) {
  FewNames names;
  for (const std::string& name : some)
    if (std::find(others.begin(), others.end(), name) == others.end()) names.add(name);
  return names;
}

// How classes differ, for people.
std::string difference(const std::vector<std::string>& before, const std::vector<std::string>& now) {
  const FewNames gone = names_beyond(before, now), added = names_beyond(now, before);
  if (gone.count() == 0 && added.count() == 0) return "they are in another order";
  return "gone are " + gone.text() + ", new are " + added.text();
}

// Otherwise labels would mean other classes than before, and what was trained on could be judged by.
void check_is_its_data(const TrainingState& checkpoint, const Inputs& inputs) {
  const auto before = checkpoint.classes, now = inputs.task->classes();
  if (!before.empty() && before != now)
    throw tandem::ConfigError("--resume: the data has other classes than the checkpoint: " + difference(before, now) +
                              "; begin anew, with --init-weights if you like");
  if (!checkpoint.data.empty() && checkpoint.data != inputs.data)
    throw tandem::ConfigError("--resume: the data is not that of the checkpoint, which had " + checkpoint.data +
                              "; now there are " + inputs.data +
                              ". What was trained on would be judged by: begin anew, with --init-weights if you like, "
                              "or put the data back");
}

// An epoch's place is counted in global batches.
void check_is_its_batch(const TrainingState& checkpoint, const Options& options) {
  const std::int64_t before = checkpoint.global_batch, now = options.global_batch();
  if (before == 0 || before == now) return;
  const int ranks = options.launch.data_loader.split_batches ? 1 : options.logical_ranks();
  throw tandem::ConfigError(batch_flag(options) + ": a step of all ranks has " + counted(now, "sample") +
                            ", those of the checkpoint have " + std::to_string(before) + "; use " +
                            (before % ranks == 0 ? "--batch-size " + std::to_string(before / ranks) + " or " : "") +
                            "--global-batch-size " + std::to_string(before));
}

// What a folder of checkpoints has of another training, before one begins anew in it; for people.
std::string earlier_checkpoints(const Options& options) {
  const std::string& directory = options.launch.checkpoints.directory;
  const auto all = directory.empty() ? std::vector<std::string>() : tandem::io::list_checkpoints(directory);
  if (all.empty()) return {};
  const std::string has = directory + " has " + counted(std::ssize(all), "checkpoint") + " of an earlier training";
  if (const auto limit = options.launch.checkpoints.total_limit)
    throw tandem::ConfigError("--total-limit " + std::to_string(*limit) + ": " + has +
                              ", which would be removed; go on with it by --resume auto, name another "
                              "--checkpoint-dir, or remove it");
  return has + ", up to " + all.back() + ", from which --resume auto would go on; those of this one follow";
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

// A path that the checkpoint says, and nobody has given.
void check_is_there(const DataOptions& data) {
  const std::pair<const char*, const std::string*> all[] = {
      {"data-dir", &data.dir}, {"data-file", &data.file}, {"val-file", &data.val_file}};
  for (const auto& [flag, path] : all) {
    std::error_code error;
    if (path->empty() || !data.of_checkpoint.contains(flag) || std::filesystem::exists(*path, error)) continue;
    throw tandem::ConfigError("--resume: the checkpoint was made with --" + std::string(flag) + " " + *path +
                              ", which is not there" + (path->starts_with('/') ? "" : ", seen from here") +
                              "; say with --" + flag + " where it is now");
  }
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
  inputs.series = begin_series(options.launch.checkpoints.directory);
  inputs.checkpoint = checkpoint_to_resume(options);
  if (!inputs.checkpoint) {
    inputs.earlier = earlier_checkpoints(options);
  } else if (const auto state = state_of_checkpoint(options.resume, options.launch.checkpoints.directory)) {
    check_is_its_data(*state, inputs);
    check_is_its_batch(*state, options);
  }
  inputs.weights = open_weights(options.save_weights);
  inputs.log = std::make_unique<MetricsLog>(options.log_json);  // last: it may wait for a reader
  return inputs;
}

}  // namespace train
