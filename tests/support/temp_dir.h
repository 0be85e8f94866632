#pragma once

#include <stdlib.h>

#include <cstddef>
#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <string>

namespace tandem::test {

/// A directory of its own that goes with the object.
class TempDir {
 public:
  TempDir() : path_((std::filesystem::temp_directory_path() / "tandem-test-XXXXXX").string()) {
    if (!mkdtemp(path_.data())) throw std::runtime_error("cannot make a temporary directory");
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::size_t entries_in(const std::string& directory) {
  using Entry = std::filesystem::directory_iterator;
  return static_cast<std::size_t>(std::distance(Entry(directory), Entry()));
}

}  // namespace tandem::test
