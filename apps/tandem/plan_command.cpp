// tandem plan: which rank gets which sample in which step.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "command.h"
#include "io/json_text.h"
#include "plan.h"
#include "tandem/core/error.h"

namespace tandem_tool {
namespace {

struct PlanOptions {
  PlanRequest request;
  std::optional<std::int64_t> length, batch_size;
  std::optional<int> ranks;
  bool uneven = false, json = false;
  std::string batch;
};

nlohmann::ordered_json answer(const std::string& line) {
  try {
    return to_json(run_plan(plan_request_from_json(nlohmann::json::parse(line))));
  } catch (const nlohmann::json::exception& error) {
    return {{"error", std::string("no JSON: ") + error.what()}};
  } catch (const std::exception& error) {
    return {{"error", error.what()}};
  }
}

int answer_lines(const std::string& path) {
  std::ifstream file;
  if (path != "-") {
    file.open(path);
    if (!file) throw tandem::ConfigError("--batch '" + path + "' cannot be read");
  }
  std::istream& lines = path == "-" ? std::cin : file;
  for (std::string line; std::getline(lines, line);)
    if (line.find_first_not_of(" \t\r") != std::string::npos)
      std::printf("%s\n", tandem::io::shown_json(answer(line)).c_str());
  return apps::kDone;
}

int show_plan(const PlanOptions& options) {
  if (!options.batch.empty()) return answer_lines(options.batch);
  if (!options.length || !options.batch_size || !options.ranks)
    throw tandem::ConfigError("--length, --batch-size and --ranks are needed (or --batch FILE)");
  PlanRequest request = options.request;
  request.length = *options.length;
  request.batch_size = *options.batch_size;
  request.ranks = *options.ranks;
  request.even_batches = !options.uneven;
  const auto result = run_plan(request);
  std::fputs((options.json ? tandem::io::shown_json(to_json(result)) + "\n" : to_text(result)).c_str(), stdout);
  return apps::kDone;
}

}  // namespace

void add_plan(CLI::App& tandem, Commands& commands) {
  const auto options = std::make_shared<PlanOptions>();
  auto* plan = tandem.add_subcommand("plan", "Shows which rank gets which sample in which step.");
  auto& request = options->request;
  const auto count = CLI::Range(std::int64_t{0}, std::int64_t{1'000'000'000'000});
  plan->add_option("--length", options->length, "samples in the dataset")->check(count);
  plan->add_option("--batch-size", options->batch_size,
                   "samples of a rank's batch (of all ranks' with --split-batches)")
      ->check(count);
  plan->add_option("--ranks", options->ranks, "ranks")->check(CLI::Range(1, 4096));
  plan->add_flag("--drop-last", request.drop_last, "leave out samples that do not fill a batch of every rank");
  plan->add_flag("--no-even-batches", options->uneven, "do not repeat samples to give all ranks as many");
  plan->add_flag("--split-batches", request.split_batches, "--batch-size is that of all ranks together");
  plan->add_flag("--dispatch", request.dispatch, "rank 0 reads for all");
  plan->add_flag("--iterable", request.iterable, "the dataset is a stream of unknown length");
  plan->add_flag("--shuffle", request.shuffle, "another order each epoch");
  plan->add_option("--seed", request.seed, "of the shuffling (default: 42, the master seed)")
      ->check(CLI::Range(std::int64_t{0}, std::numeric_limits<std::int64_t>::max()));
  plan->add_flag("--seedable-sampler", request.seedable_sampler, "shuffle epoch e from seed + e");
  plan->add_option("--skip-batches", request.skip_batches, "leave out the first K steps of each epoch")->check(count);
  plan->add_option("--epochs", request.epochs, "(default: 1)")->check(count);
  plan->add_flag("--json", options->json, "print JSON");
  plan->add_option("--batch", options->batch,
                   "answer each line of this file, a JSON object, with a line of JSON; -: standard input")
      ->type_name("FILE");
  plan->footer(
      "Examples:\n  tandem plan --length 13 --batch-size 4 --ranks 2\n"
      "  tandem plan --length 11 --batch-size 2 --ranks 2 --shuffle --seed 7 --epochs 2 --json");
  commands.push_back({plan, [options] { return show_plan(*options); }});
}

}  // namespace tandem_tool
