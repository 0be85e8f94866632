#include "tandem/runtime/logger.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "tandem/runtime/accelerator.h"

namespace tandem {
namespace {

// With the rank before each line, and a newline after it.
std::string with_rank(int rank, std::string_view text) {
  const std::string prefix = "[rank " + std::to_string(rank) + "] ";
  std::string lines;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines += prefix;
    lines += text.substr(begin, end - begin);
    lines += '\n';
    begin = end + 1;
    if (begin == text.size()) break;  // a newline at the end begins no line
  }
  return lines;
}

}  // namespace

const char* name_of(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return "debug";
    case LogLevel::info: return "info";
    case LogLevel::warning: return "warning";
    case LogLevel::error: break;
  }
  return "error";
}

LogSink::LogSink(std::function<void(LogLevel, const std::string&)> write, LogLevel least)
    : write_(std::move(write)), least_(least) {}

void LogSink::write(LogLevel level, const std::string& lines) {
  if (!wants(level)) return;
  const std::lock_guard lock(mutex_);
  std::string_view rest = lines;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    write_(level, std::string(rest.substr(0, end)));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
}

bool Logger::was_said(const std::string& text, bool once) { return once && !said_.insert(text).second; }

void Logger::log(LogLevel level, const std::string& text, LogOptions options) {
  if (!sink_.wants(level)) return;  // on no rank
  if (options.ranks == LogRanks::main && !accelerator_.is_main()) return;
  const std::string lines = was_said(text, options.once) ? "" : with_rank(accelerator_.rank(), text);
  if (options.ranks != LogRanks::in_order) return sink_.write(level, lines);
  std::string of_all;
  for (const std::string& of_rank : accelerator_.gather_objects(lines)) of_all += of_rank;
  if (accelerator_.is_main()) sink_.write(level, of_all);
}

}  // namespace tandem
