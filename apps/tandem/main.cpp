// tandem: shows what Tandem does with a machine and with data.
// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <limits>
#include <optional>
#include <string>

#include <c10/util/Exception.h>
#include <CLI/CLI.hpp>

#include "bench.h"
#include "plan.h"
#include "report.h"
#include "tandem/core/error.h"

namespace {

constexpr int kFailed = 1, kWrongUsage = 2;

struct PlanOptions {
  tandem_tool::PlanRequest request;
  std::optional<std::int64_t> length, batch_size;
  std::optional<int> ranks;
  bool uneven = false, json = false;
  std::string batch;
};

void add_plan(CLI::App& app, PlanOptions& options) {
  auto* plan = app.add_subcommand("plan", "Shows which rank gets which sample in which step.");
  auto& request = options.request;
  const auto count = CLI::Range(std::int64_t{0}, std::int64_t{1'000'000'000'000});
  plan->add_option("--length", options.length, "samples in the dataset")->check(count);
  plan->add_option("--batch-size", options.batch_size, "samples of a rank's batch (of all ranks' with --split-batches)")
      ->check(count);
  plan->add_option("--ranks", options.ranks, "ranks")->check(CLI::Range(1, 4096));
  plan->add_flag("--drop-last", request.drop_last, "leave out samples that do not fill a batch of every rank");
  plan->add_flag("--no-even-batches", options.uneven, "do not repeat samples to give all ranks as many");
  plan->add_flag("--split-batches", request.split_batches, "--batch-size is that of all ranks together");
  plan->add_flag("--dispatch", request.dispatch, "rank 0 reads for all");
  plan->add_flag("--iterable", request.iterable, "the dataset is a stream of unknown length");
  plan->add_flag("--shuffle", request.shuffle, "another order each epoch");
  plan->add_option("--seed", request.seed, "of the shuffling (default: 42, the master seed)")
      ->check(CLI::Range(std::int64_t{0}, std::numeric_limits<std::int64_t>::max()));
  plan->add_flag("--seedable-sampler", request.seedable_sampler, "shuffle epoch e from seed + e");
  plan->add_option("--skip-batches", request.skip_batches, "leave out the first K steps of each epoch")->check(count);
  plan->add_option("--epochs", request.epochs, "(default: 1)")->check(count);
  plan->add_flag("--json", options.json, "print JSON");
  plan->add_option("--batch", options.batch,
                   "answer each line of this file, a JSON object, with a line of JSON; -: standard input");
  plan->footer(
      "Examples:\n  tandem plan --length 13 --batch-size 4 --ranks 2\n"
      "  tandem plan --length 11 --batch-size 2 --ranks 2 --shuffle --seed 7 --epochs 2 --json");
}

struct BenchOptions {
  tandem_tool::BenchRequest request;
  std::string sizes = "1K,64K,4M,64M";
  bool json = false;
};

CLI::App* add_bench(CLI::App& app, BenchOptions& options) {
  auto* bench = app.add_subcommand("bench", "Measures Tandem on this machine.");
  bench->require_subcommand(1);
  auto* reduce = bench->add_subcommand("allreduce", "All-reduces between CPU ranks, beside a memcpy of the same size.");
  reduce->add_option("--ranks", options.request.ranks, "ranks")->check(CLI::Range(1, 256))->capture_default_str();
  reduce->add_option("--sizes", options.sizes, "bytes of the float32 tensor")->capture_default_str();
  reduce->add_flag("--json", options.json, "a JSON object a size");
  return bench;
}

int run_bench(BenchOptions options) {
  options.request.bytes = tandem_tool::parse_sizes(options.sizes);
  if (!options.json) std::printf("%12s %12s %10s %12s %8s\n", "bytes", "time us", "GB/s", "memcpy us", "ratio");
  tandem_tool::bench_allreduce(options.request, [&](const tandem_tool::BenchResult& result) {
    const double bytes = static_cast<double>(result.bytes);
    if (options.json)
      std::printf("%s\n", tandem_tool::to_json(result).dump().c_str());
    else
      std::printf("%12lld %12.2f %10.2f %12.2f %8.2f\n", static_cast<long long>(result.bytes), result.seconds * 1e6,
                  bytes / result.seconds * 1e-9, result.memcpy_seconds * 1e6, result.seconds / result.memcpy_seconds);
    std::fflush(stdout);
  });
  return 0;
}

nlohmann::ordered_json answer(const std::string& line) {
  try {
    return tandem_tool::to_json(
        tandem_tool::run_plan(tandem_tool::plan_request_from_json(nlohmann::json::parse(line))));
  } catch (const nlohmann::json::exception& error) {
    return {{"error", std::string("no JSON: ") + error.what()}};
  } catch (const std::exception& error) {
    return {{"error", error.what()}};
  }
}

int run_batch(const std::string& path) {
  std::ifstream file;
  if (path != "-") {
    file.open(path);
    if (!file) throw tandem::ConfigError("--batch '" + path + "' cannot be read");
  }
  std::istream& lines = path == "-" ? std::cin : file;
  for (std::string line; std::getline(lines, line);)
    if (line.find_first_not_of(" \t\r") != std::string::npos) std::printf("%s\n", answer(line).dump().c_str());
  return 0;
}

int run_plan(PlanOptions options) {
  if (!options.batch.empty()) return run_batch(options.batch);
  if (!options.length || !options.batch_size || !options.ranks)
    throw tandem::ConfigError("--length, --batch-size and --ranks are needed (or --batch FILE)");
  auto& request = options.request;
  request.length = *options.length;
  request.batch_size = *options.batch_size;
  request.ranks = *options.ranks;
  request.even_batches = !options.uneven;
  const auto result = tandem_tool::run_plan(request);
  std::fputs((options.json ? tandem_tool::to_json(result).dump() + "\n" : tandem_tool::to_text(result)).c_str(),
             stdout);
  return 0;
}

int complain(bool json, const std::string& what, int code) {
  if (json) std::printf("%s\n", nlohmann::ordered_json{{"error", what}}.dump().c_str());
  std::fprintf(stderr, "tandem: %s\n", what.c_str());
  return code;
}

// The help of the innermost subcommand that was named.
std::string help(const CLI::App& app) {
  const CLI::App* innermost = &app;
  while (!innermost->get_subcommands().empty()) innermost = innermost->get_subcommands().front();
  return innermost->help();
}

}  // namespace

int main(int argc, char** argv) {
  PlanOptions plan;
  BenchOptions bench;
  CLI::App app("Shows what Tandem does with a machine and with data.", "tandem");
  app.require_subcommand(1);
  add_plan(app, plan);
  const CLI::App* bench_command = add_bench(app, bench);
  tandem_tool::ReportOptions report;
  const CLI::App* report_command = tandem_tool::add_report(app, report);
  const auto complain_as_asked = [&](const std::string& what, int code) {
    return complain(plan.json || bench.json, what, code);
  };
  try {
    app.parse(argc, argv);
    if (report_command->parsed()) return tandem_tool::run_report(report);
    return bench_command->parsed() ? run_bench(bench) : run_plan(plan);
  } catch (const CLI::CallForHelp&) {
    std::printf("%s", help(app).c_str());
    return 0;
  } catch (const CLI::ParseError& error) {
    return complain_as_asked(std::string(error.what()) + "; see --help", kWrongUsage);
  } catch (const tandem::Error& error) {
    return complain_as_asked(error.what(), kWrongUsage);
  } catch (const c10::Error& error) {
    return complain_as_asked(error.what_without_backtrace(), kFailed);
  } catch (const std::exception& error) {
    return complain_as_asked(error.what(), kFailed);
  }
}
