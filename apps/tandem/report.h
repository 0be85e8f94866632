#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace tandem_tool {

struct ReportOptions {
  std::vector<std::string> directories;
  std::string output;  ///< "": report.html in the first directory
};

/// Adds the subcommand `report` to the program.
CLI::App* add_report(CLI::App& app, ReportOptions& options);

/// Writes the report and says where it is. Returns the exit code; throws as tandem_report::write_report.
int run_report(const ReportOptions& options);

}  // namespace tandem_tool
