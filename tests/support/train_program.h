#pragma once

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/run_program.h"
#include "support/temp_dir.h"

namespace tandem::test {

/// Runs build/apps/train.
inline ProgramResult run_train(const std::string& arguments) {
  return run_program(std::string(TANDEM_TRAIN) + " " + arguments);
}

/// That train refuses `arguments` in one line, which has the `words`.
inline void check_refused(const std::string& arguments, const std::vector<std::string>& words) {
  const auto result = run_train("--max-steps 1 " + arguments);
  CAPTURE(arguments, result.output);
  CHECK(result.exit_code == 2);
  CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
  for (const auto& word : words) CHECK_THAT(result.output, ContainsSubstring(word));
}

/// The complete lines of a log: the last one may still be being written. `judged`: also those of judgements in between.
inline std::vector<nlohmann::json> read_log(const std::string& path, bool judged = false) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line) && !file.eof();) {
    auto json = nlohmann::json::parse(line);
    if (judged || !json.contains("eval")) lines.push_back(std::move(json));
  }
  return lines;
}

/// A text of `bytes` that a model can learn, in a file of `dir`.
inline std::string write_text(const TempDir& dir, std::size_t bytes) {
  std::string text;
  for (int i = 0; text.size() < bytes; ++i) text += "Line " + std::to_string(i) + " says that pigs may fly.\n";
  const std::string path = dir / "text";
  std::ofstream(path) << text.substr(0, bytes);
  return path;
}

/// The losses of a training's updates.
inline std::vector<double> losses_of(const std::string& arguments) {
  const TempDir dir;
  const auto result = run_train(arguments + " --log-json " + (dir / "log"));
  CAPTURE(arguments, result.output);
  REQUIRE(result.exit_code == 0);
  std::vector<double> losses;
  for (const auto& line : read_log(dir / "log"))
    if (line.contains("loss")) losses.push_back(line["loss"]);
  return losses;
}

}  // namespace tandem::test
