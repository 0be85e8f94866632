#pragma once

#include <fstream>
#include <iterator>
#include <string>

namespace tandem::test {

/// What is in a file; empty when there is none.
inline std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Writes `bytes` to a file, in place of what is in it.
inline void put_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace tandem::test
