#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string_view>

namespace tandem_report {

/// A line of a file, without its end.
struct LogLine {
  std::size_t number;  ///< from 1
  /// Followed in memory by as many readable bytes as simdjson wants. Empty where `too_long`.
  std::string_view text;
  bool too_long;  ///< more than 64 MB, of which a log has none
  bool complete;  ///< not the last, cut off in the middle
};

/// Calls `on_line` with each line of a file that is not empty, and holds little more than one of them in memory. Throws
/// std::runtime_error when the file cannot be read.
void for_each_line(const std::filesystem::path& path, const std::function<void(const LogLine&)>& on_line);

}  // namespace tandem_report
