// build/apps/tandem bench: that it measures what it says, not how fast it is.
#include <sstream>

#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/run_program.h"
#include "support/temp_dir.h"

using namespace tandem::test;
using Json = nlohmann::json;

namespace {

ProgramResult bench(const std::string& arguments) {
  return run_program(std::string(TANDEM_TOOL) + " bench " + arguments);
}

std::vector<Json> figures(const std::string& arguments) {
  const auto result = bench(arguments + " --json");
  CAPTURE(arguments, result.output);
  REQUIRE(result.exit_code == 0);
  std::vector<Json> lines;
  std::istringstream text(result.output);
  for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
  return lines;
}

}  // namespace

TEST_CASE("bench dispatch counts the batches of all ranks, none of them copied") {
  const auto json = figures("dispatch --ranks 3 --batches 500 --shape 3,4")[0];
  CHECK(json["ranks"] == 3);
  CHECK(json["batches_per_second"].get<double>() > 0);
  CHECK(json["copied"] == false);
  CHECK_THAT(bench("dispatch --batches 100").output, ContainsSubstring("without a copy"));
}

TEST_CASE("bench optimizer has a figure for each optimizer and one for memory traffic") {
  const auto lines = figures("optimizer --millions 1 --runs 1");
  REQUIRE(lines.size() == 4);
  for (const auto& line : lines) {
    CHECK(line["fused_seconds"].get<double>() > 0);
    CHECK(line["beside_seconds"].get<double>() > 0);
  }
}

TEST_CASE("bench checkpoint saves as many bytes as asked for, and leaves nothing behind") {
  const TempDir dir;
  const auto json = figures("checkpoint " + dir.path() + " --millions 2 --runs 1")[0];
  CHECK(json["bytes"].get<double>() == Approx(2e6 * 4 * 3).epsilon(0.1));  // weights and two averages
  for (const char* key : {"save_seconds", "stop_seconds", "background_seconds", "load_seconds", "write_seconds"})
    CHECK(json[key].get<double>() > 0);
  CHECK(std::filesystem::is_empty(dir.path()));
  CHECK(bench("checkpoint /nowhere").exit_code == 2);
}

TEST_CASE("bench train ends with the weights of a bare loop") {
  const auto json = figures("train --ranks 2 --steps 5 --pairs 1")[0];
  CHECK(json["weights_difference"].get<double>() <= 1e-5);
  CHECK(json["ratio"].get<double>() > 0);
  CHECK(bench("train --data-dir /nowhere").exit_code == 2);
}
