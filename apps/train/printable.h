#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace train {

/// `bytes` as text for a terminal or a log: valid UTF-8 as it is, and \x1b and the like for bytes of anything else and
/// for control characters but tab and newline.
std::string printable(std::string_view bytes);

/// "1 step", "2 steps"; "2 classes" by `ending`.
inline std::string counted(std::int64_t count, const std::string& what, const char* ending = "s") {
  return std::to_string(count) + " " + what + (count == 1 ? "" : ending);
}

}  // namespace train
