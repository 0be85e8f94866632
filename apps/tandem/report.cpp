#include "report.h"

#include <cstdio>
#include <filesystem>

#include "report/report.h"

namespace tandem_tool {

CLI::App* add_report(CLI::App& app, ReportOptions& options) {
  auto* report = app.add_subcommand("report", "Shows tracked runs in one HTML file.");
  report
      ->add_option("directory", options.directories, "of a run, with its log.jsonl; several are shown over each other")
      ->required();
  report->add_option("-o,--output", options.output, "file to write (default: report.html in the first directory)");
  report->footer(
      "The file holds all it needs: it opens from a disk, without a network. A run may still be going on.\n\n"
      "Examples:\n  tandem report runs/adamw\n  tandem report runs/adamw runs/sgd -o compare.html");
  return report;
}

int run_report(const ReportOptions& options) {
  const std::vector<std::filesystem::path> directories(options.directories.begin(), options.directories.end());
  const auto output =
      options.output.empty() ? directories.front() / "report.html" : std::filesystem::path(options.output);
  tandem_report::write_report(directories, output);
  std::printf("%s\n", output.c_str());
  return 0;
}

}  // namespace tandem_tool
