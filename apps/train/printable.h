#pragma once

#include <string>
#include <string_view>

namespace train {

/// `bytes` as text for a terminal or a log: valid UTF-8 as it is, and \x1b and the like for bytes of anything else and
/// for control characters but tab and newline.
std::string printable(std::string_view bytes);

}  // namespace train
