// What nodes tell each other, in the store and over links: fields, each with its length before it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "comm/nodes/link.h"

namespace tandem::comm {

/// Adds a field to `bytes`.
inline void add_field(std::string& bytes, std::string_view field) {
  bytes += std::to_string(field.size()) + ":";
  bytes += field;
}

/// Reads fields one after another. Nothing in the bytes is trusted: members throw LinkError that names the node which
/// has written them.
class Fields {
 public:
  /// Of `bytes`, which outlive it, of `node`.
  Fields(std::string_view bytes, int node) : rest_(bytes), node_(node) {}

  /// The next one.
  std::string text() {
    const auto colon = rest_.find(':');
    if (colon == 0 || colon > 12 || rest_.find_first_not_of("0123456789") != colon) fail();
    const std::size_t length = std::stoul(std::string(rest_.substr(0, colon)));
    rest_.remove_prefix(colon + 1);
    if (length > rest_.size()) fail();
    std::string field(rest_.substr(0, length));
    rest_.remove_prefix(length);
    return field;
  }

  /// The next one, which is a number from 0 to `most`.
  std::int64_t number(std::int64_t most) {
    const std::string digits = text();
    if (digits.empty() || digits.size() > 12 || digits.find_first_not_of("0123456789") != std::string::npos) fail();
    const std::int64_t value = std::stoll(digits);
    if (value > most) fail();
    return value;
  }

  std::string_view rest() const { return rest_; }  ///< what has not been read

  /// There is to be no more.
  void end() const {
    if (!rest_.empty()) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw LinkError(node_,
                    "node " + std::to_string(node_) + " has sent something that is not of Tandem's of this version");
  }

  std::string_view rest_;
  const int node_;
};

}  // namespace tandem::comm
