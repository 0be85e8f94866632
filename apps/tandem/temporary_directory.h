#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tandem/core/error.h"

namespace tandem_tool {

/// A directory of its own in `parent` that goes with the object. Throws tandem::Error.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::filesystem::path& parent) : path_((parent / "tandem-XXXXXX").string()) {
    if (!mkdtemp(path_.data())) throw tandem::Error("'" + parent.string() + "': no directory can be made there");
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace tandem_tool
