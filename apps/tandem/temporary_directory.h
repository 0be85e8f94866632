#pragma once

#include <filesystem>
#include <string>

namespace tandem_tool {

/// A directory of its own in `parent` that goes with the object, or with the process that a signal ends. There is one
/// at a time. Throws tandem::Error.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::filesystem::path& parent);
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  /// For those who end the process while others may still write there. Any thread.
  static void remove_any();

 private:
  std::string path_;
};

}  // namespace tandem_tool
