// What the programs' command lines have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace apps {

/// Has `app` and its subcommands refuse empty values, as an unset variable of a shell gives them: they would be taken
/// for flags that are not given. After all options are added.
inline void refuse_empty_values(CLI::App& app) {
  const auto problem = [](const std::string& value) {
    return value.empty() ? "is empty; give it a value, or leave it out" : "";
  };
  for (CLI::Option* option : app.get_options())
    if (option->get_expected_max() > 0) option->check(problem);
  for (CLI::App* sub : app.get_subcommands([](CLI::App*) { return true; })) refuse_empty_values(*sub);
}

/// What is wrong with a command line that `app` has not understood.
inline std::string problem_of(const CLI::App& app, const CLI::ParseError& error) {
  if (dynamic_cast<const CLI::ExtrasError*>(&error) == nullptr) return error.what();
  std::string all;  // CLI11 has them in the reverse order
  for (const std::string& word : app.remaining(/*recurse=*/true)) all += (all.empty() ? "" : " ") + word;
  return "not expected: " + all;
}

}  // namespace apps
