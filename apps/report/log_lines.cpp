#include "log_lines.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <vector>

#include <simdjson.h>

namespace tandem_report {
namespace {

constexpr std::size_t kPart = std::size_t{1} << 20;          // bytes to read at a time
constexpr std::size_t kLongestLine = std::size_t{64} << 20;  // bytes

// Hands lines out of a buffer that holds what has been read and not handed out yet.
class LineReader {
 public:
  explicit LineReader(const std::function<void(const LogLine&)>& on_line) : on_line_(on_line) {}

  // Where the file's next part goes.
  char* room() {
    if (held_.size() < used_ + kPart + simdjson::SIMDJSON_PADDING)
      held_.resize(2 * used_ + kPart + simdjson::SIMDJSON_PADDING);
    return held_.data() + used_;
  }

  // `size` bytes came into the room.
  void take(std::size_t size) {
    const char* begin = held_.data();
    const char* looked_at = begin + used_;
    used_ += size;
    const char* const end = held_.data() + used_;
    while (const auto* newline =
               static_cast<const char*>(std::memchr(looked_at, '\n', static_cast<std::size_t>(end - looked_at)))) {
      hand_out({begin, newline}, true);
      begin = looked_at = newline + 1;
    }
    used_ = static_cast<std::size_t>(end - begin);
    std::memmove(held_.data(), begin, used_);
    if (used_ > kLongestLine) {
      used_ = 0;
      skipping_ = true;
    }
  }

  void end() {
    if (used_ > 0 || skipping_) hand_out({held_.data(), used_}, false);
  }

 private:
  void hand_out(std::string_view text, bool complete) {
    ++number_;
    if (skipping_)
      on_line_({number_, {}, true, complete});
    else if (text.find_first_not_of(" \t\r") != std::string_view::npos)
      on_line_({number_, text, false, complete});
    skipping_ = false;
  }

  const std::function<void(const LogLine&)>& on_line_;
  std::vector<char> held_;
  std::size_t used_ = 0, number_ = 0;
  bool skipping_ = false;
};

}  // namespace

void for_each_line(const std::filesystem::path& path, const std::function<void(const LogLine&)>& on_line) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  const auto failed = [&] { return std::system_error(errno, std::generic_category(), "cannot read " + path.string()); };
  if (!file) throw failed();
  LineReader lines(on_line);
  for (std::size_t size; (size = std::fread(lines.room(), 1, kPart, file.get())) > 0;) lines.take(size);
  if (std::ferror(file.get())) throw failed();
  lines.end();
}

}  // namespace tandem_report
