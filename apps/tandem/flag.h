// What the definitions of command lines say, for what is made from them.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace tandem_tool {

/// What may follow a flag, or stand for an argument.
enum class Takes { nothing, choice, file, directory, text };

Takes what_takes(const CLI::Option& option);

/// The values of a Takes::choice.
std::vector<std::string> choices_of(const CLI::Option& option);

/// Its names as they are written: "--batch-size", "-h", "--no-tf32". None for an argument.
std::vector<std::string> names_of(const CLI::Option& option);

/// A program or subcommand with those within it.
struct Program {
  std::string path;  ///< "tandem bench train"
  const CLI::App* app;
};

/// The program named `name` and all its subcommands, each before those within it.
std::vector<Program> all_within(const std::string& name, const CLI::App& app);

}  // namespace tandem_tool
