// train: trains a network on MNIST or on a text with every rank of one process.
// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "check_exact.h"
#include "common/interrupt.h"
#include "common/program.h"
#include "judging.h"
#include "model_flags.h"
#include "options.h"
#include "printable.h"
#include "report/report.h"
#include "training.h"

namespace {

constexpr const char* kWarning = "train: warning: ";

// What takes long before there is anything else to tell.
void announce_waiting(const train::Options& options) {
  if (options.quiet) return;
  if (options.data.skip_bad_images) std::printf("reads every picture once, for --skip-bad-images\n");
  if (options.finds_batch_size) std::printf("looks for the largest batch that fits into memory\n");
  std::fflush(stdout);
}

void announce(const train::Options& options, const train::Inputs& inputs) {
  for (const std::string& text : inputs.warnings) std::fprintf(stderr, "%s%s\n", kWarning, text.c_str());
  const auto left_out = inputs.task->left_out();
  for (const std::string& why : left_out) std::fprintf(stderr, "%s%s; it is left out\n", kWarning, why.c_str());
  if (!left_out.empty()) std::fprintf(stderr, "%spictures that were left out: %zu\n", kWarning, left_out.size());
  if (options.quiet) return;
  const auto& launch = options.launch;
  const bool asked = launch.gpus || launch.cpu || !launch.devices.empty();
  const std::string name = options.machine.backend_name;
  const int ranks = options.machine.world_size();
  const char* precision = launch.mixed_precision == tandem::Precision::bf16   ? " in bf16"
                          : launch.mixed_precision == tandem::Precision::fp16 ? " in fp16"
                                                                              : "";
  std::printf("training %s%s on %d %s rank%s%s\n",
              (options.script.empty() ? train::name_of(options.model) : options.script).c_str(), precision, ranks,
              name.c_str(), ranks == 1 ? "" : "s",
              asked ? "" : (name == "CPU" ? " (no GPU is usable; choose with --cpu N)" : " (all GPUs)"));
  if (!inputs.batch_size.empty()) std::printf("%s\n", inputs.batch_size.c_str());
  if (const std::string about = inputs.task->about(); !about.empty()) std::printf("%s\n", about.c_str());
  if (!inputs.repeated.empty()) std::printf("%s\n", inputs.repeated.c_str());
  if (!inputs.earlier.empty()) std::printf("%s\n", inputs.earlier.c_str());
  for (const std::string& line : options.resumes_otherwise) std::printf("%s\n", line.c_str());
  std::printf("%s", inputs.weights_table.c_str());
  std::fflush(stdout);
}

void report(const train::Options& options, const train::Outcome& outcome) {
  if (options.quiet) return;
  const auto& metrics = outcome.metrics;
  const std::string updates = train::counted(outcome.steps, "step");
  if (outcome.interrupted) {
    std::printf("interrupted after step %lld in epoch %lld\n", static_cast<long long>(outcome.steps),
                static_cast<long long>(outcome.epoch + 1));
    if (!outcome.saved_to.empty()) std::printf("saved to %s; go on with --resume auto\n", outcome.saved_to.c_str());
  }
  if (metrics.judged && metrics.startup_seconds > 0)
    std::printf("%s  after %s in %.1f s  (%.0f samples/s, first step after %.2f s)\n", metrics.verdict.sentence.c_str(),
                updates.c_str(), metrics.train_seconds, metrics.samples_per_second, metrics.startup_seconds);
  else if (metrics.judged)  // nothing was left to train
    std::printf("%s  after %s\n", metrics.verdict.sentence.c_str(), updates.c_str());
  for (const std::string& what : outcome.written) std::printf("%s\n", what.c_str());
  if (!metrics.judged) return;
  if (!outcome.interrupted && !outcome.saved_to.empty()) std::printf("checkpoint: %s\n", outcome.saved_to.c_str());
  if (outcome.ended_early) std::printf("ended early: %s got no better\n", options.early_stop->metric.c_str());
  if (!outcome.best.empty()) std::printf("%s: %s\n", outcome.best.c_str(), train::best_weights_path(options).c_str());
  if (!outcome.graphs.empty()) std::printf("%s\n", outcome.graphs.c_str());
  if (!metrics.sample.empty()) std::printf("a sample of what it writes:\n%s\n", metrics.sample.c_str());
}

// LibTorch's profiler wants to be initialised here, and would log that it finds no GPU.
void prepare_profile(const train::Options& options) {
  if (options.profile.directory.empty()) return;
  setenv("KINETO_LOG_LEVEL", "99", 0);
  tandem::prepare_profiler();
}

void report_profile(const train::Options& options, const train::Outcome& outcome) {
  const tandem::Profile& profile = outcome.profile;
  if (options.quiet || options.profile.directory.empty() || outcome.failed_profile) return;
  if (profile.trace.empty())
    std::printf("no profile: training ended before update %lld\n", static_cast<long long>(options.profile.first_step));
  else
    std::printf("%strace of all ranks, for ui.perfetto.dev: %s\n", profile.table().c_str(), profile.trace.c_str());
}

void write_report(const train::Options& options, train::Outcome& outcome) {
  if (!options.report) return;
  const std::string path = options.project_dir + "/report.html";
  try {
    tandem_report::write_report({options.project_dir}, path);
    if (!options.quiet) std::printf("report: %s\n", path.c_str());
  } catch (const tandem::Error& error) {
    outcome.unwritten.push_back(std::string("--report ") + error.what());
  }
}

// Throws where something that was asked for could not be written.
void check_all_is_written(const train::Outcome& outcome) {
  std::string problems = outcome.failed_save;
  for (const std::string& problem : outcome.unwritten) problems += (problems.empty() ? "" : "; ") + problem;
  if (!problems.empty()) throw tandem::Error(problems);
}

// torchrun shows what its workers write here, in the way of its own for Python.
void tell_torchrun(const std::string& what) {
  const char* const path = std::getenv("TORCHELASTIC_ERROR_FILE");
  if (!path || !*path) return;
  const nlohmann::json error{
      {"message", what}, {"extraInfo", {{"py_callstack", what}, {"timestamp", std::to_string(std::time(nullptr))}}}};
  const auto replaced = nlohmann::json::error_handler_t::replace;  // what is no UTF-8
  std::ofstream(path) << nlohmann::json{{"message", error}}.dump(-1, ' ', false, replaced);
}

// What is wrong here ends the other machines too, which hear of it.
train::Inputs read_inputs_of_all(train::Options& options) {
  if (!options.machine.joined) return train::read_inputs(options);
  try {
    return train::read_inputs(options);
  } catch (const std::exception&) {
    const auto problem = std::current_exception();
    tandem::launch_on({options.machine, options.launch},
                      [&](tandem::Accelerator&) { std::rethrow_exception(problem); });
    throw;
  }
}

int run(int argc, char** argv) {
  auto parsed = train::parse_options(argc, argv);
  if (!parsed.options) return parsed.exit_code;
  train::Options& options = *parsed.options;
  announce_waiting(options);
  const train::Inputs inputs = read_inputs_of_all(options);
  announce(options, inputs);
  prepare_profile(options);
  train::Outcome outcome;
  tandem::AcceleratorState launch{options.machine, options.launch};
  launch.config.checkpoints.series = inputs.series;
  launch.config.on_warning = [](const std::string& text) {
    const char* over_progress = isatty(STDERR_FILENO) != 0 ? "\r\033[K" : "";
    std::fprintf(stderr, "%s%s%s\n", over_progress, kWarning, text.c_str());
  };
  if (options.check_exact) return train::check_exact(options, launch.config, inputs);
  const auto unsaved = std::make_shared<train::Unsaved>(options.save_weights);
  const auto on_ready = [&] { apps::stop_at_signals([unsaved] { return unsaved->text(); }, !options.quiet); };
  tandem::launch_on(launch, [&](tandem::Accelerator& accelerator) {
    const train::Outcome mine = train::train_on_rank(accelerator, options, inputs, *unsaved, on_ready);
    if (accelerator.is_local_main()) outcome = mine;
  });
  report_profile(options, outcome);
  report(options, outcome);
  write_report(options, outcome);
  check_all_is_written(outcome);
  return outcome.interrupted ? apps::kInterrupted : apps::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a training is worth more than what it prints
  return apps::run_program(
      "train", [&] { return run(argc, argv); },
      [](const std::string& what) {
        std::fprintf(stderr, "train: %s\n", what.c_str());
        tell_torchrun(what);
      });
}
