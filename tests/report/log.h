#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "support/temp_dir.h"

namespace tandem::test {

/// A directory of a run with these lines as its log.
class RunDir {
 public:
  explicit RunDir(const std::string& log) { std::ofstream(dir_ / "log.jsonl", std::ios::binary) << log; }
  const std::string& path() const { return dir_.path(); }
  void write(const std::string& name, const std::string& content) const {
    std::filesystem::create_directories(std::filesystem::path(dir_ / name).parent_path());
    std::ofstream(dir_ / name, std::ios::binary) << content;
  }

 private:
  TempDir dir_;
};

/// A line of scalars with one value.
inline std::string scalar(long long step, const std::string& name, const std::string& value, double time = 0) {
  return R"({"type":"scalars","step":)" + std::to_string(step) + R"(,"time":)" + std::to_string(time) +
         R"(,"values":{")" + name + "\":" + value + "}}\n";
}

inline const std::string kPng = std::string("\x89PNG\r\n\x1a\n", 8) + "pixels";

}  // namespace tandem::test
