// The flags of a launch, for programs that read their command line with CLI11 (2.1 or newer). Who includes this header
// needs it; the library does not, and `tandem/tandem.h` does not include it.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <CLI/CLI.hpp>

#include "tandem/runtime/launch_config.h"

namespace tandem {
namespace detail {

// Says what is wrong with FIRST:LAST, or sets `steps`.
inline std::string read_steps(std::string_view text, trace::Steps& steps) {
  trace::Steps read;
  const auto number = [](std::string_view digits, std::int64_t& value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() && value >= 1;
  };
  const std::size_t colon = std::min(text.find(':'), text.size());
  if (colon == text.size() || !number(text.substr(0, colon), read.first) || !number(text.substr(colon + 1), read.last))
    return "is not FIRST:LAST, such as 10:20, counted from 1";
  if (read.last < read.first) return "ends before it begins";
  steps = read;
  return {};
}

// An option whose values have names.
template <class Value>
void add_choice(CLI::App& app, const std::string& name, Value& value, const std::map<std::string, Value>& names,
                const std::string& text) {
  auto* option = app.add_option_function<std::string>(
      name, [&value, names](const std::string& given) { value = names.at(given); }, text);
  option->check(CLI::IsMember(names));
  for (const auto& [its_name, its] : names)
    if (its == value) option->default_str(its_name);
}

// A flag for yes or no, of which the last one counts. (CLI11's own for an optional sets it to 0 at once.)
inline void add_switch(CLI::App& app, const std::string& name, const std::function<void(bool)>& set,
                       const std::string& text) {
  auto* flag = app.add_flag(name, text);
  flag->each([flag, set](const std::string& given) {
    bool on = false;
    if (!CLI::detail::lexical_cast(given, on))
      throw CLI::ConversionError(flag->get_name(), std::vector<std::string>{given});
    set(on);
  });
}

// CLI11 reads -1 as the largest unsigned number, and so what is larger.
inline std::string problem_with_seed(const std::string& text) {
  if (text.find('-') != std::string::npos) return text + " is negative; use 0 or more";
  std::uint64_t seed = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), seed).ec == std::errc::result_out_of_range)
    return text + " is too large; use at most " + std::to_string(std::numeric_limits<std::uint64_t>::max());
  return {};
}

// --gpus, --devices and --cpu: one of them replaces what `config` has of the others.
inline void add_flags_of_ranks(CLI::App& app, LaunchConfig& config) {
  const auto replace = [&config] {
    config.gpus.reset();
    config.devices.clear();
    config.cpu.reset();
  };
  auto* gpus = app.add_option_function<int>(
                      "--gpus",
                      [&config, replace](int ranks) {
                        replace();
                        config.gpus = ranks;
                      },
                      "ranks on the first N GPUs")
                   ->check(CLI::Range(1, 1024));
  auto* devices = app.add_option_function<std::vector<int>>(
                         "--devices",
                         [&config, replace](const std::vector<int>& ranks) {
                           replace();
                           config.devices = ranks;
                         },
                         "ranks on these GPUs, such as 0,2,3")
                      ->delimiter(',')
                      ->check(CLI::Range(0, 1023));
  auto* cpu = app.add_option_function<int>(
                     "--cpu",
                     [&config, replace](int ranks) {
                       replace();
                       config.cpu = ranks;
                     },
                     "N ranks on the CPU")
                  ->check(CLI::Range(1, 1024));
  gpus->excludes(devices)->excludes(cpu);
  devices->excludes(cpu);
  const auto logical_ranks = [&config](int ranks) { config.exact = ExactOptions{.logical_ranks = ranks}; };
  app.add_option_function<int>("--logical-ranks", logical_ranks,
                               "--exact with N parts of a global batch, a power of two (default: 8)")
      ->check(CLI::Range(1, 1024));
  add_switch(
      app, "--exact",
      [&config](bool on) {
        if (on && !config.exact) config.exact.emplace();
        if (!on) config.exact.reset();
      },
      "the same bits on any number of ranks that divides the logical ones; see docs/exact.md");
  app.add_option("--threads-per-rank", config.threads_per_rank,
                 "intra-op threads of a CPU rank (default: cores / ranks)")
      ->check(CLI::Range(1, 1024));
}

// --nodes, --node and --head, for those who start the processes of several machines by hand.
inline void add_flags_of_nodes(CLI::App& app, LaunchConfig& config) {
  const auto nodes = [&config]() -> Nodes& { return config.nodes ? *config.nodes : config.nodes.emplace(); };
  app.add_option_function<int>(
         "--nodes", [nodes](int count) { nodes().nodes = count; },
         "processes of the training, mostly one a machine (default: what a launcher says); 1: this one alone")
      ->check(CLI::Range(1, kMostNodes));
  app.add_option_function<int>(
         "--node", [nodes](int node) { nodes().node = node; }, "which of them this is, from 0")
      ->check(CLI::Range(0, kMostNodes - 1))
      ->needs("--nodes");
  app.add_option_function<std::string>(
         "--head",
         [nodes](const std::string& head) {
           const std::size_t colon = head.rfind(':');
           const std::string digits = colon == std::string::npos ? "" : head.substr(colon + 1);
           const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), nodes().port);
           if (colon == 0 || error != std::errc() || end != digits.data() + digits.size())
             throw CLI::ValidationError("--head " + head + " is not HOST:PORT, such as head:29500");
           nodes().head = head.substr(0, colon);
           nodes().started_by = "--node";
         },
         "HOST:PORT at which node 0 listens for the others")
      ->needs("--nodes");
}

// What the ranks compute in, and with.
inline void add_flags_of_computing(CLI::App& app, LaunchConfig& config) {
  add_choice<Transport>(
      app, "--transport", config.transport,
      {{"automatic", Transport::automatic}, {"nccl", Transport::nccl}, {"peer-memory", Transport::peer_memory}},
      "how GPU ranks exchange data");
  add_switch(
      app, "--tf32,!--no-tf32", [&config](bool on) { config.tf32 = on; },
      "let GPUs compute float32 in TF32, which is faster and less exact");
  app.add_flag("--expandable-segments", config.expandable_segments, "waste less GPU memory where sizes vary");
  app.add_option("--seed", config.seed, "master seed")->check(problem_with_seed)->capture_default_str();
  add_choice<Precision>(app, "--mixed-precision", config.mixed_precision,
                        {{"no", Precision::no}, {"bf16", Precision::bf16}, {"fp16", Precision::fp16}},
                        "what the model computes in; fp16 scales the loss and skips updates that overflow");
}

// What the ranks do of an epoch.
inline void add_flags_of_batches(CLI::App& app, LaunchConfig& config) {
  app.add_option("--gradient-accumulation-steps", config.gradient_accumulation_steps, "batches an update")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  auto& loaders = config.data_loader;
  add_switch(
      app, "--no-even-batches", [&loaders](bool on) { loaders.even_batches = !on; },
      "do not repeat samples to give all ranks as many");
  app.add_flag("--split-batches", loaders.split_batches, "a loader's batch size is that of all ranks together");
  add_switch(
      app, "--dispatch-batches", [&loaders](bool on) { loaders.dispatch_batches = on; }, "rank 0 reads for all");
}

}  // namespace detail

/// Adds flags for what a launch takes to `app`: --gpus, --devices, --cpu, --threads-per-rank, --nodes, --node, --head,
/// --transport, --tf32, --expandable-segments, --seed, --mixed-precision, --gradient-accumulation-steps,
/// --no-even-batches, --split-batches,
/// --dispatch-batches and --nvtx-steps. `train` has the same ones.
///
/// Parsing writes into `config`, which has to outlive it. What is not given stays as it was before, so a program sets
/// defaults of its own there; one of --gpus, --devices and --cpu replaces all three. A value that is wrong by itself is
/// thrown as a CLI::ParseError that names the flag; what does not fit the machine, later by `launch`, as a ConfigError.
/// --nvtx-steps, which profiles/ uses, is also read from the environment, from TANDEM_NVTX_STEPS.
///
/// What a program does with checkpoints is its own: LaunchConfig::checkpoints has no flags here.
inline void add_launch_flags(CLI::App& app, LaunchConfig& config) {
  detail::add_flags_of_ranks(app, config);
  detail::add_flags_of_nodes(app, config);
  detail::add_flags_of_computing(app, config);
  detail::add_flags_of_batches(app, config);
  const auto take_steps = [&config](const std::string& text) {
    if (text.empty()) return;
    if (const std::string problem = detail::read_steps(text, config.nvtx_capture); !problem.empty())
      throw CLI::ValidationError("--nvtx-steps " + text + " " + problem);
  };
  app.add_option_function<std::string>("--nvtx-steps", take_steps,
                                       "updates that the scripts in profiles/ capture, FIRST:LAST")
      ->envname("TANDEM_NVTX_STEPS");
}

}  // namespace tandem
