// tandem report: shows tracked runs in one HTML file.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "command.h"
#include "common/interrupt.h"
#include "follow_report.h"
#include "io/output_file.h"
#include "report/report.h"

namespace tandem_tool {
namespace {

struct ReportOptions {
  std::vector<std::string> directories;
  std::string output;  // empty: report.html in the first directory
  bool follows = false;
  int port = 0;
};

int run(const ReportOptions& options) {
  const std::vector<std::filesystem::path> directories(options.directories.begin(), options.directories.end());
  if (options.follows) {
    const auto tell = [](int port) {
      std::printf("http://127.0.0.1:%d/ shows the run while it goes on; Ctrl-C ends this\n", port);
      std::fflush(stdout);
    };
    follow_report(directories, options.port, tell, apps::stop_at_signals([] { return std::string(); }, false));
    return apps::kDone;
  }
  const auto output =
      options.output.empty() ? directories.front() / "report.html" : std::filesystem::path(options.output);
  tandem_report::write_report(directories, output);
  if (!tandem::io::OutputFile(output).is_stream()) std::printf("%s\n", output.c_str());  // which it would be part of
  return apps::kDone;
}

}  // namespace

void add_report(CLI::App& tandem, Commands& commands) {
  auto* app = tandem.add_subcommand("report", "Shows tracked runs in one HTML file.");
  const auto options = std::make_shared<ReportOptions>();
  app->add_option("directory", options->directories, "of a run, with its log.jsonl; several are shown over each other")
      ->required();
  app->add_option("-o,--output", options->output, "file to write (default: report.html in the first directory)");
  auto* follow = app->add_flag("--follow", options->follows,
                               "serve the page on this machine while the runs go on; it updates by itself");
  app->add_option("--port", options->port, "of 127.0.0.1 (default: any that is free)")
      ->check(CLI::Range(0, 65535))
      ->needs(follow);
  follow->excludes("--output");
  app->footer(
      "The file holds all it needs: it opens from a disk, without a network. A run may still be going on.\n\n"
      "Examples:\n  tandem report runs/adamw\n  tandem report runs/adamw runs/sgd -o compare.html\n"
      "  tandem report --follow runs/adamw");
  commands.push_back({app, [options] { return run(*options); }});
}

}  // namespace tandem_tool
