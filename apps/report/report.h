#pragma once

#include <filesystem>
#include <vector>

namespace tandem_report {

/// Writes one HTML file that shows the tracked runs in `directories`, each with a log.jsonl, over each other: it holds
/// all it needs and asks for nothing over a network. It appears whole or not at all, and replaces the one before.
/// Throws tandem::ConfigError when a directory holds no run, std::runtime_error when the file cannot be written.
void write_report(const std::vector<std::filesystem::path>& directories, const std::filesystem::path& output);

}  // namespace tandem_report
