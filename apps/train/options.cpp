// The command line of train: its flags, and what they come to together, with those of a checkpoint that goes on.
#include "options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "common/command_line.h"
#include "common/program.h"
#include "config_file.h"
#include "going_on.h"
#include "judging.h"
#include "model_flags.h"
#include "optimizer.h"
#include "ranks.h"
#include "real_range.h"
#include "resumed_flags.h"
#include "tandem/core/error.h"
#include "tandem/io/safetensors.h"
#include "tandem/launch_flags.h"
#include "tandem/models/gpt2.h"
#include "weights.h"

namespace train {
namespace {

constexpr std::int64_t kMany = 1'000'000'000;

const std::map<std::string, SchedulerKind> kSchedulers{
    {"constant", SchedulerKind::constant},     {"step", SchedulerKind::step},
    {"multi-step", SchedulerKind::multi_step}, {"exponential", SchedulerKind::exponential},
    {"linear", SchedulerKind::linear},         {"polynomial", SchedulerKind::polynomial},
    {"cosine", SchedulerKind::cosine},         {"cosine-restarts", SchedulerKind::cosine_restarts},
    {"one-cycle", SchedulerKind::one_cycle},   {"plateau", SchedulerKind::plateau}};

constexpr const char* kAuto = "auto";

const std::map<std::string, CudaGraphs> kCudaGraphs{
    {kAuto, CudaGraphs::automatic}, {"on", CudaGraphs::on}, {"off", CudaGraphs::off}};

// The command line as given, before what depends on several flags is worked out.
struct Raw {
  Options options;
  std::string batch_size;  // a number or auto; empty: neither
  std::optional<std::int64_t> global_batch_size;
  std::optional<double> lr, weight_decay;
  ModelFlags model;
  std::string optimizer = "adamw", scheduler = "constant", cuda_graphs = kAuto;
  std::string profile_steps = "10:20", early_stop;
  bool no_progress = false;
};

// A number as --batch-size has it; nothing when it is none.
std::optional<std::int64_t> read_batch_size(const std::string& text) {
  std::int64_t size = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), size);
  if (error != std::errc() || end != text.data() + text.size() || size < 1 || size > kMany) return {};
  return size;
}

std::string check_batch_size(const std::string& text) {
  if (text == kAuto || read_batch_size(text)) return {};
  return text + " is no number from 1 to " + std::to_string(kMany) + ", nor auto";
}

std::string refuse_one(const std::string& text) {
  return std::atof(text.c_str()) < 1 ? std::string() : text + " leaves nothing; use less than 1";
}

void add_text(CLI::App& app, Raw& raw) {
  auto& options = raw.options;
  app.add_option("--dropout", raw.model.dropout,
                 "share of activations that the gpt (default: 0) or gpt2 (0.1) leaves out in training")
      ->check(real_range(0.0, 1.0))
      ->check(refuse_one);
  app.add_option("--sample-bytes", options.sample_bytes,
                 "length of the text that the gpt or gpt2 writes at the end; 0: none")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1'000'000}))
      ->capture_default_str();
}

void add_training(CLI::App& app, Raw& raw) {
  auto& options = raw.options;
  const auto positive = CLI::Range(std::int64_t{1}, kMany);
  const auto rate = real_range(0.0, 1e6);
  app.add_option("--epochs", options.epochs, "passes over the training data")->check(positive)->capture_default_str();
  app.add_option("--max-steps", options.max_steps, "stop after N optimizer updates")->check(positive);
  auto* batch = app.add_option("--batch-size", raw.batch_size,
                               "samples of a rank's batch (default: 64), or auto: the largest power of two that fits "
                               "into memory, which is tried before training")
                    ->type_name("N|auto")
                    ->check(check_batch_size);
  auto* global = app.add_option("--global-batch-size", raw.global_batch_size, "samples of all ranks' batches together")
                     ->check(positive);
  batch->excludes(global);
  app.add_option("--optimizer", raw.optimizer, "how to update")
      ->check(CLI::IsMember(optimizer_names()))
      ->capture_default_str();
  app.add_option("--lr", raw.lr,
                 "learning rate (default: 0.001 for adamw and muon, 0.05 for sgd, 0.0001 for lion, 0.01 for adafactor)")
      ->check(rate);
  app.add_option("--momentum", options.momentum, "of sgd")->check(real_range(0.0, 1.0))->capture_default_str();
  app.add_option("--weight-decay", raw.weight_decay, "(default: 0.01 for adamw, 0.1 for lion and muon, otherwise 0)")
      ->check(rate);
  app.add_option("--scheduler", raw.scheduler, "course of the learning rate over the training")
      ->check(CLI::IsMember(kSchedulers))
      ->capture_default_str();
  app.add_option("--warmup-steps", options.warmup_steps, "let the learning rate grow over the first N updates")
      ->check(CLI::Range(std::int64_t{0}, kMany))
      ->capture_default_str();
  app.add_option("--warmup-epochs", options.warmup_epochs, "the same over the first N epochs, such as 0.5")
      ->check(real_range(0.0, 1e9));
  app.add_option("--clip-grad-norm", options.clip_grad_norm, "limit of the gradient's 2-norm")
      ->check(real_range(1e-12, 1e12));
  app.add_option("--label-smoothing", options.label_smoothing, "share of the target that is spread over all classes")
      ->check(real_range(0.0, 1.0))
      ->check(refuse_one)
      ->capture_default_str();
  app.add_option("--ema", options.ema,
                 "average the weights with this decay, such as 0.999, and judge and save the average too")
      ->check(real_range(0.0, 1.0));
  app.add_flag("--drop-last", options.drop_last, "leave out samples that do not fill a batch of every rank");
}

void add_judging(CLI::App& app, Raw& raw) {
  auto& options = raw.options;
  app.add_option("--eval-every", options.eval_every,
                 "judge the network every N updates; 0: at the end only (default: after each epoch)")
      ->check(CLI::Range(std::int64_t{0}, kMany));
  app.add_option("--save-best", options.save_best,
                 "keep the best network by this figure, such as accuracy: best.safetensors beside --save-weights, and "
                 "the checkpoint best in --checkpoint-dir")
      ->type_name("METRIC");
  app.add_option("--early-stop", raw.early_stop,
                 "end when the figure METRIC was no better for PATIENCE judgements, such as accuracy:3")
      ->type_name("METRIC:PATIENCE");
}

void add_tracking(CLI::App& app, Options& options) {
  auto* with =
      app.add_option("--log-with", options.log_with,
                     "record losses, times, memory and results with jsonl, csv or tensorboard, or several, such "
                     "as jsonl,tensorboard")
          ->delimiter(',')
          ->check(CLI::IsMember({"jsonl", "csv", "tensorboard"}));
  auto* directory = app.add_option("--project-dir", options.project_dir, "folder that --log-with writes into");
  with->needs(directory);
  directory->needs(with);
  app.add_flag("--report", options.report,
               "write report.html there at the end: curves, times and results (needs jsonl)")
      ->needs(with);
  app.add_option("--log-every", options.log_every, "record the means of every N updates")
      ->needs(with)
      ->check(CLI::Range(std::int64_t{1}, kMany))
      ->capture_default_str();
}

void add_files(CLI::App& app, Raw& raw) {
  auto& options = raw.options;
  app.add_option("--init-weights", options.init_weights,
                 "begin with these weights: a safetensors file, a .pth or .pt, or a directory of Hugging Face's")
      ->type_name("FILE");
  app.add_option("--save-weights", options.save_weights,
                 "write the trained weights to this safetensors file; those of a TorchScript model with the model to a "
                 "file that ends with .pt")
      ->type_name("FILE");
  add_fine_tuning_flags(app, options.fine_tuning);
  app.add_option("--log-json", options.log_json, "write one JSON object an update to this file")->type_name("FILE");
  auto& checkpoints = options.launch.checkpoints;
  auto* directory =
      app.add_option("--checkpoint-dir", checkpoints.directory,
                     "folder for checkpoints of the whole training; one is written at the end and at Ctrl-C");
  app.add_option("--save-every", options.save_every, "write a checkpoint every N optimizer updates")
      ->check(CLI::Range(std::int64_t{1}, kMany))
      ->needs(directory);
  app.add_option("--total-limit", checkpoints.total_limit, "how many checkpoints to keep (default: all)")
      ->check(CLI::Range(std::int64_t{1}, kMany))
      ->needs(directory);
  app.add_option("--resume", options.resume,
                 "go on from this checkpoint; auto: from the newest of --checkpoint-dir, if there is one");
  auto* profile = app.add_option("--profile", options.profile.directory,
                                 "write a trace of all ranks, for ui.perfetto.dev, to this folder, and print where the "
                                 "time goes")
                      ->type_name("DIR");
  app.add_option("--profile-steps", raw.profile_steps, "updates that the profile is of, FIRST:LAST")
      ->needs(profile)
      ->capture_default_str();
  add_tracking(app, options);
  app.add_option(
         "--check-exact", options.check_exact,
         "instead of training, make N updates with --exact, once more on one rank (on two, if there is one), and "
         "say what differs first, if anything does; writes nothing")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000}))
      ->excludes("--save-weights", "--log-json", "--checkpoint-dir", "--profile", "--log-with");
  app.add_flag("--quiet", options.quiet, "print nothing but errors");
  app.add_flag("--no-progress", raw.no_progress, "print no progress");
}

// Configurations of earlier versions say it in other words.
std::string graphs_of_flag(const std::string& text) {
  if (text == "true") return "on";
  return text == "false" ? "off" : text;
}

struct CommandLine {
  Raw raw;
  CLI::App app{"Trains a network on pictures, a table or a text with every rank of one process.", "train"};

  CommandLine() {
    app.option_defaults()->always_capture_default(false);
    raw.options.launch.tf32 = false;  // exact, unless --tf32 is given
    tandem::add_launch_flags(app, raw.options.launch);
    app.get_option("--split-batches")->description("--batch-size is that of all ranks together");
    app.add_option("--cuda-graphs", raw.cuda_graphs,
                   "record a step on the GPU and replay it, for models that keep a GPU waiting for the host: on "
                   "(without a value too), off, or what is faster as measured (auto, the default)")
        ->expected(0, 1)
        ->default_str("on")
        ->option_text("auto|on|off")
        ->transform(CLI::Validator([](std::string& text) { return text = graphs_of_flag(text), std::string(); }, ""))
        ->check(CLI::IsMember(kCudaGraphs));
    add_model_flags(app, raw.model);
    add_data_flags(app, raw.options.data);
    add_text(app, raw);
    add_training(app, raw);
    add_judging(app, raw);
    add_files(app, raw);
    add_config_flag(app);
    apps::refuse_empty_values(app);
    app.footer(
        "Examples:\n  ./train --cpu 2\n  ./train --model cnn --epochs 3 --save-weights cnn.safetensors\n"
        "  ./train --model gpt --data-file FILE\n  ./train --config train.json --epochs 1");
  }
  CommandLine(const CommandLine&) = delete;  // the app writes into `raw`
  CommandLine& operator=(const CommandLine&) = delete;
};

// The loader's batch size for `ranks` ranks.
std::int64_t loader_batch_size(const Raw& raw, int ranks) {
  const bool split = raw.options.launch.data_loader.split_batches;
  if (!raw.global_batch_size) {
    const std::int64_t size = read_batch_size(raw.batch_size).value_or(split ? 64 * ranks : 64);
    if (split && size % ranks != 0)
      throw tandem::ConfigError("--batch-size " + std::to_string(size) + " does not divide by " +
                                std::to_string(ranks) + " ranks with --split-batches; use a multiple of " +
                                std::to_string(ranks));
    return size;
  }
  const std::int64_t size = *raw.global_batch_size;
  if (size % ranks != 0)
    throw tandem::ConfigError("--global-batch-size " + std::to_string(size) + " does not divide by " +
                              std::to_string(ranks) + " ranks; use a multiple of " + std::to_string(ranks));
  return split ? size : size / ranks;
}

// Reads "FIRST:LAST".
tandem::trace::Steps read_steps(const std::string& flag, const std::string& text) {
  tandem::trace::Steps steps;
  if (const std::string problem = tandem::detail::read_steps(text, steps); !problem.empty())
    throw tandem::ConfigError(flag + " " + text + " " + problem);
  return steps;
}

void check_output(const char* flag, const std::string& path) {
  if (path.empty()) return;
  try {
    tandem::io::check_writable(path);
  } catch (const tandem::ConfigError& error) {
    throw tandem::ConfigError(std::string(flag) + " " + error.what());
  }
}

// Whatever can be seen before it is opened, which a pipe's reader would notice.
void check_log(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path parent = fs::path(path).parent_path();
  if (fs::is_directory(path, error))
    throw tandem::ConfigError("--log-json '" + path + "' cannot be written: it is a directory");
  if (!parent.empty() && !fs::is_directory(parent, error))
    throw tandem::ConfigError("--log-json '" + path + "' cannot be written: the directory '" + parent.string() +
                              "' does not exist");
}

SchedulerKind scheduler_of(const Raw& raw) {
  const SchedulerKind kind = kSchedulers.at(raw.scheduler);
  const bool by_steps = raw.options.warmup_steps > 0, by_epochs = raw.options.warmup_epochs.value_or(0) > 0;
  if (by_steps && by_epochs)
    throw tandem::ConfigError("--warmup-steps does not go with --warmup-epochs; one of them must be 0 or not given");
  if (!by_steps && !by_epochs) return kind;
  const std::string flag = by_epochs ? "--warmup-epochs" : "--warmup-steps";
  if (kind == SchedulerKind::one_cycle)
    throw tandem::ConfigError(flag + " does not go with --scheduler one-cycle, which warms up by itself");
  if (kind == SchedulerKind::plateau)
    throw tandem::ConfigError(flag + " does not go with --scheduler plateau, which goes by epochs");
  return kind;
}

std::int64_t vocabulary_of(const Raw& raw) {
  const bool ids = raw.options.data.tokens != tandem::data::TextTokens::bytes;
  if (!ids && raw.model.vocabulary)
    throw tandem::ConfigError("--vocabulary is for files of token ids, --tokens uint16 or uint32; of bytes there are " +
                              std::to_string(GptOptions{}.vocabulary));
  return raw.model.vocabulary.value_or(ids ? tandem::models::Gpt2Options{}.vocabulary : GptOptions{}.vocabulary);
}

Options finish(Raw raw) {
  Options& options = raw.options;
  const Options model = read_model_flags(raw.model);
  options.model = model.model;
  options.script = model.script;
  options.hidden = model.hidden;
  options.checkpoint_activations = model.checkpoint_activations;
  options.gpt = model.gpt;
  options.gpt.vocabulary = vocabulary_of(raw);
  const OptimizerDefaults optimizer = defaults_of_optimizer(raw.optimizer);
  options.optimizer = optimizer.kind;
  options.lr = raw.lr.value_or(optimizer.lr);
  options.weight_decay = raw.weight_decay.value_or(optimizer.weight_decay);
  if (options.optimizer != OptimizerKind::sgd && options.momentum != 0.0)
    throw tandem::ConfigError("--momentum belongs to --optimizer sgd; " + raw.optimizer + " has none");
  options.scheduler = scheduler_of(raw);
  options.cuda_graphs = kCudaGraphs.at(raw.cuda_graphs);
  options.progress = !raw.no_progress && !options.quiet && !options.check_exact;
  if (options.check_exact && !options.launch.exact) options.launch.exact.emplace();
  options.finds_batch_size = raw.batch_size == kAuto;
  check_output("--save-weights", options.save_weights);
  if (!raw.early_stop.empty()) options.early_stop = read_early_stop(raw.early_stop);
  if (!options.save_best.empty() && options.save_weights.empty() && options.launch.checkpoints.directory.empty())
    throw tandem::ConfigError("--save-best needs --save-weights or --checkpoint-dir, where the best are kept");
  if (options.ema && !options.save_weights.empty())
    check_output("--save-weights with --ema", averaged_path(options.save_weights));
  if (!options.save_weights.empty()) check_output("--save-best", best_weights_path(options));
  check_log(options.log_json);
  if (options.report && std::find(options.log_with.begin(), options.log_with.end(), "jsonl") == options.log_with.end())
    throw tandem::ConfigError("--report needs --log-with jsonl, which it is made of");
  if (options.resume == "auto" && options.launch.checkpoints.directory.empty())
    throw tandem::ConfigError("--resume auto needs --checkpoint-dir, where the checkpoints are");
  if (!options.resume.empty() && !options.init_weights.empty())
    throw tandem::ConfigError("--init-weights does not go with --resume, which has weights of its own");
  const auto profiled = read_steps("--profile-steps", raw.profile_steps);
  options.profile.first_step = profiled.first;
  options.profile.last_step = profiled.last;
  settle_nodes(options);
  options.machine = examine_ranks(options.launch);  // last: it waits for the other nodes, where there are some
  options.batch_size = loader_batch_size(raw, options.logical_ranks());
  if (options.machine.node > 0) options.quiet = true;  // node 0 speaks for all
  options.progress = options.progress && !options.quiet;
  return options;
}

// Nobody here knows what token ids stand for.
void check_flags_of_tokens(const CLI::App& app, const DataOptions& data) {
  if (data.tokens != tandem::data::TextTokens::bytes && app.get_option("--sample-bytes")->count() > 0)
    throw tandem::ConfigError("--sample-bytes is for --tokens bytes; a network of token ids writes no sample");
}

// A flag's text as what it means.
tandem::io::ConfigValue value_of(const std::string& text) {
  const auto as = [&text]<class Number>(Number number) -> std::optional<tandem::io::ConfigValue> {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size()) return {};
    return number;
  };
  if (text == "true" || text == "false") return text == "true";
  if (const auto integer = as(std::int64_t{})) return *integer;
  if (const auto number = as(double{})) return *number;
  return text;
}

// As given on the command line, or their defaults; those that depend on others as they came out.
tandem::io::Config flags_of(const CLI::App& app, const Options& options) {
  tandem::io::Config flags;
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_single_name();
    if (name == "help" || !flag_goes_with("--" + name, name_of(options.model))) continue;
    if (name == "data-dir" && !options.data.file.empty()) continue;
    if (name == "lr")
      flags.emplace_back(name, options.lr);
    else if (name == "weight-decay")
      flags.emplace_back(name, options.weight_decay);
    else if (name == "batch-size")
      flags.emplace_back(name, options.batch_size);
    else if (name == "decay-norms")  // without it, a checkpoint is of a version that had the decay everywhere
      flags.emplace_back(name, options.fine_tuning.decay_norms);
    else if (name == "layers")
      flags.emplace_back(name, options.gpt.layers);
    else if (name == "width")
      flags.emplace_back(name, options.gpt.width);
    else if (name == "heads")
      flags.emplace_back(name, options.gpt.heads);
    else if (name == "dropout")
      flags.emplace_back(name, options.gpt.dropout);
    else if (name == "vocabulary" && options.data.tokens != tandem::data::TextTokens::bytes)
      flags.emplace_back(name, options.gpt.vocabulary);
    else if (name == "data-dir" || name == "data-file" || name == "val-file")
      flags.emplace_back(name, CLI::detail::join(option->reduced_results(), ","));  // "007" is no number
    else if (option->count() > 0)
      flags.emplace_back(name, value_of(CLI::detail::join(option->reduced_results(), ",")));
    else if (!option->get_default_str().empty())
      flags.emplace_back(name, value_of(option->get_default_str()));
  }
  return flags;
}

}  // namespace

std::shared_ptr<CLI::App> describe_command_line() {
  const auto line = std::make_shared<CommandLine>();
  return {line, &line->app};
}

namespace {

// Reads `words`; an exit code when that ends it.
std::optional<int> parse(CLI::App& app, std::vector<std::string> words) {
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  try {
    app.parse(std::move(words));
  } catch (const CLI::CallForHelp&) {
    std::printf("%s", app.help().c_str());
    return apps::kDone;
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "train: %s; see --help\n", apps::problem_of(app, error).c_str());
    return apps::kWrongUsage;
  }
  return std::nullopt;
}

// --batch-size auto has found it then, and the number of ranks may be another.
void go_on_with_batch_size(Raw& raw, const tandem::io::Config& checkpoint) {
  const bool given = raw.global_batch_size || !(raw.batch_size.empty() || raw.batch_size == kAuto);
  if (given) return;
  const auto find = [&](const std::string& name) -> std::optional<std::int64_t> {
    for (const auto& [its, value] : checkpoint)
      if (const auto* const number = std::get_if<std::int64_t>(&value); number && its == name) return *number;
    return {};
  };
  if (const auto global = find("global-batch-size")) {
    raw.global_batch_size = global;
    raw.batch_size.clear();
  } else if (const auto size = find("batch-size"); size && raw.batch_size == kAuto) {
    raw.batch_size = std::to_string(*size);
  }
}

}  // namespace

ParseResult parse_options(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  auto line = std::make_unique<CommandLine>();
  if (const auto code = parse(line->app, words)) return {std::nullopt, *code};
  std::optional<tandem::io::Config> checkpoint;
  std::set<std::string> data_of_checkpoint;
  std::shared_ptr<const FoundCheckpoint> found;
  if (Options& given = line->raw.options; !given.resume.empty()) {
    settle_nodes(given);
    found = std::make_shared<const FoundCheckpoint>(find_checkpoint(given));
    if (found->state) checkpoint = found->state->flags;
  }
  if (checkpoint) {
    const auto inherited = inherited_flags(line->app, *checkpoint);
    words.insert(words.end(), inherited.begin(), inherited.end());
    for (const char* flag : {"data-dir", "data-file", "val-file"})
      if (line->app.get_option(std::string("--") + flag)->count() == 0) data_of_checkpoint.insert(flag);
    line = std::make_unique<CommandLine>();
    if (const auto code = parse(line->app, words)) return {std::nullopt, *code};
  }
  check_flags_of_models(line->app, line->raw.model.model);
  check_flags_of_tokens(line->app, line->raw.options.data);
  if (checkpoint) go_on_with_batch_size(line->raw, *checkpoint);
  Options options = finish(std::move(line->raw));
  options.found = std::move(found);
  options.flags = flags_of(line->app, options);
  options.data.of_checkpoint = std::move(data_of_checkpoint);
  if (checkpoint) {
    Differences differences = compare_flags(options.flags, *checkpoint);
    options.resumes_otherwise = std::move(differences.lines);
    if (differences.in_optimizer) options.optimizer_options = tandem::SettingsOf::program;
  }
  return {std::move(options), apps::kDone};
}

}  // namespace train
