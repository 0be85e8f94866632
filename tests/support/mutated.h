#pragma once

#include <random>
#include <string>

namespace tandem::test {

/// `bytes` with one to four random changes: a byte set, a bit flipped, some removed, some repeated elsewhere.
inline std::string mutated(std::string bytes, std::mt19937& random) {
  const auto below = [&](std::size_t limit) {
    return std::uniform_int_distribution<std::size_t>(0, limit - 1)(random);
  };
  for (std::size_t changes = 1 + below(4); changes > 0 && !bytes.empty(); --changes) {
    const std::size_t at = below(bytes.size());
    switch (below(4)) {
      case 0: bytes[at] = static_cast<char>(below(256)); break;
      case 1: bytes.erase(at, 1 + below(8)); break;
      case 2: bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(16))); break;
      default: bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ (1u << below(8)));
    }
  }
  return bytes;
}

}  // namespace tandem::test
