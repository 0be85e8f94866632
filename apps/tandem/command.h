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
void add_env(CLI::App& tandem, Commands& commands);
void add_estimate(CLI::App& tandem, Commands& commands);
void add_man(CLI::App& tandem, Commands& commands);
void add_plan(CLI::App& tandem, Commands& commands);
void add_report(CLI::App& tandem, Commands& commands);
void add_test(CLI::App& tandem, Commands& commands);

/// From now on an interrupt (SIGINT, SIGTERM) requests a stop of this token, for LaunchConfig::cancel; the second one
/// ends the process with 130, as the first one does before.
std::stop_token stop_when_interrupted();

/// Has interrupts end the process as said above. At the start of main, before there are other threads.
void catch_interrupts();

}  // namespace tandem_tool
