// tandem: shows what Tandem does with a machine, with data and with files.
// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "command.h"
#include "common/command_line.h"
#include "common/interrupt.h"
#include "io/json_text.h"
#include "tandem/core/error.h"

namespace {

using namespace tandem_tool;

constexpr auto kSubcommands = {add_env,  add_test,  add_estimate, add_checkpoint, add_diff,       add_predict,
                               add_plan, add_bench, add_report,   add_config,     add_completion, add_man};

// The innermost subcommand that was named.
const CLI::App& chosen(const CLI::App& app) {
  const CLI::App* innermost = &app;
  while (!innermost->get_subcommands().empty()) innermost = innermost->get_subcommands().front();
  return *innermost;
}

int parse_and_run(CLI::App& app, const Commands& commands, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::printf("%s", chosen(app).help().c_str());
    return apps::kDone;
  } catch (const CLI::ParseError& error) {
    throw tandem::ConfigError(apps::problem_of(app, error) + "; see --help");
  }
  const auto command = std::find_if(commands.begin(), commands.end(),
                                    [&](const Command& candidate) { return candidate.app == &chosen(app); });
  return command->run();
}

}  // namespace

std::stop_token tandem_tool::stop_when_interrupted() {
  return apps::stop_at_signals([] { return "what was measured so far"; }, false);
}

int main(int argc, char** argv) {
  CLI::App app("Shows what Tandem does with a machine, with data and with files.", "tandem");
  app.require_subcommand(1);
  app.footer("Examples:\n  tandem env\n  tandem plan --help\n  tandem bench allreduce --ranks 4");
  Commands commands;
  for (const auto& add : kSubcommands) add(app, commands);
  apps::refuse_empty_values(app);
  const bool json =
      std::any_of(argv, argv + argc, [](const char* argument) { return std::string_view(argument) == "--json"; });
  return apps::run_program(
      "tandem", [&] { return parse_and_run(app, commands, argc, argv); },
      [&](const std::string& what) {
        if (json) std::printf("%s\n", tandem::io::shown_json(nlohmann::json{{"error", what}}).c_str());
        std::fprintf(stderr, "tandem: %s\n", what.c_str());
      });
}
