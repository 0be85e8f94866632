// The subcommands of the tool, each in a file of its own.
#pragma once

#include <functional>
#include <stop_token>
#include <vector>

#include <CLI/CLI.hpp>

#include "common/program.h"

namespace tandem_tool {

/// A subcommand, and what it does once its flags are read. `run` returns the exit code; what it throws is reported by
/// main, as JSON too when the subcommand has a flag --json that is given.
struct Command {
  CLI::App* app;
  std::function<int()> run;
};
using Commands = std::vector<Command>;

// Each adds its subcommand to `tandem` and to `commands`.
void add_bench(CLI::App& tandem, Commands& commands);
void add_checkpoint(CLI::App& tandem, Commands& commands);
void add_completion(CLI::App& tandem, Commands& commands);
void add_config(CLI::App& tandem, Commands& commands);
void add_diff(CLI::App& tandem, Commands& commands);
void add_env(CLI::App& tandem, Commands& commands);
void add_estimate(CLI::App& tandem, Commands& commands);
void add_man(CLI::App& tandem, Commands& commands);
void add_plan(CLI::App& tandem, Commands& commands);
void add_predict(CLI::App& tandem, Commands& commands);
void add_report(CLI::App& tandem, Commands& commands);
void add_test(CLI::App& tandem, Commands& commands);

/// For LaunchConfig::cancel: from now on signals request a stop of this token, as apps::stop_at_signals says.
std::stop_token stop_when_interrupted();

}  // namespace tandem_tool
