// build/apps/tandem as its user sees it.
#include <array>
#include <fstream>
#include <sstream>

#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/run_program.h"
#include "support/temp_dir.h"

using tandem::test::run_program;
using tandem::test::TempDir;
using Json = nlohmann::json;

namespace {

auto plan(const std::string& arguments) { return run_program(std::string(TANDEM_TOOL) + " plan " + arguments); }

}  // namespace

TEST_CASE("the plan of a worked example, as JSON and for people") {
  const auto json = plan("--length 13 --batch-size 4 --ranks 2 --json");
  CHECK(json.exit_code == 0);
  CHECK(Json::parse(json.output) == Json::parse(R"({
    "epochs": [{"ranks": [[[0, 1, 2, 3], [8, 9, 10, 11]], [[4, 5, 6, 7], [12, 0, 1, 2]]], "remainder": 5,
                "gathered": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}], "prepared_len": [2, 2]})"));
  CHECK_THAT(plan("--length 13 --batch-size 4 --ranks 2").output, ContainsSubstring("step 1  8 9 10 11  |  12 0 1 2"));
}

TEST_CASE("worked examples 10 to 13 through the program") {
  const std::string shuffled = "--length 11 --batch-size 2 --ranks 2 --shuffle --seed 7 --epochs 2 --json ";
  const auto ranks = [](const std::string& arguments, int epoch) {
    return Json::parse(plan(arguments).output)["epochs"][epoch]["ranks"];
  };
  CHECK(ranks(shuffled, 0) == Json::parse("[[[1,7],[10,4],[3,5]],[[6,2],[9,8],[0,1]]]"));
  CHECK(ranks(shuffled, 1) == Json::parse("[[[4,9],[7,2],[8,3]],[[0,10],[5,6],[1,4]]]"));
  CHECK(ranks(shuffled + "--dispatch", 1) == Json::parse("[[[9,1],[2,4],[8,6]],[[7,10],[0,3],[5,9]]]"));
  CHECK(ranks(shuffled + "--dispatch --seedable-sampler", 1) ==
        Json::parse("[[[10,9],[0,1],[6,8]],[[2,4],[7,3],[5,10]]]"));
  CHECK(ranks("--length 13 --batch-size 2 --ranks 2 --skip-batches 2 --json", 0) ==
        Json::parse("[[[8,9],[12,0]],[[10,11],[1,2]]]"));
}

TEST_CASE("a batch file gets a line for each of its lines, errors among them") {
  TempDir dir;
  std::ofstream(dir / "requests") << R"({"length": 5, "batch_size": 2, "ranks": 2, "iterable": true, "seed": null})"
                                  << "\n\n{\"length\": 5, \"batch_size\": 3, \"ranks\": 2, \"split_batches\": true}\n"
                                  << "nonsense\n"
                                  << R"({"length": 5, "batch_size": 2, "ranks": 2, "wat": 1})" << '\n'
                                  << R"({"length": 5, "batch_size": 2, "ranks": 2, "shuffle": true, "iterable": true})"
                                  << '\n'
                                  << R"({"length": 0, "batch_size": 2, "ranks": 2, "shuffle": true, "epochs": 0})"
                                  << '\n'
                                  << R"({"length": 4, "batch_size": 2, "ranks": 1, "seed": 9223372036854775807})"
                                  << '\n';
  const auto result = plan("--batch " + (dir / "requests"));
  CHECK(result.exit_code == 0);
  std::istringstream lines(result.output);
  std::vector<Json> answers;
  for (std::string line; std::getline(lines, line);) answers.push_back(Json::parse(line));
  REQUIRE(answers.size() == 7);
  CHECK(answers[0]["prepared_len"] == Json::parse("[null, null]"));
  CHECK(answers[0]["epochs"][0]["ranks"] == Json::parse("[[[0,1],[4,0]],[[2,3],[1,2]]]"));
  for (std::size_t i = 1; i < 6; ++i) CHECK(answers[i].contains("error"));
  CHECK_THAT(answers[1]["error"].get<std::string>(), ContainsSubstring("use 2 or 4"));
  CHECK_THAT(answers[3]["error"].get<std::string>(), ContainsSubstring("wat"));
  CHECK(answers[6]["epochs"][0]["remainder"] == 0);
}

TEST_CASE("wrong arguments of plan exit with 2 and one sentence") {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"--length 4 --ranks 2", "--batch-size"},
      {"--length -1 --batch-size 2 --ranks 2", "--length"},
      {"--length 4 --batch-size 0 --ranks 2", "batch_size 0"},
      {"--length 4 --batch-size 2 --ranks 0", "--ranks"},
      {"--length 4 --batch-size 3 --ranks 2 --split-batches", "use 2 or 4"},
      {"--length x --batch-size 3 --ranks 2", "--length"},
      {"--batch /nowhere", "/nowhere"},
      {"--wat", "--wat"}};
  for (const auto& [arguments, word] : cases) {
    const auto result = plan(arguments);
    CAPTURE(arguments, result.output);
    CHECK(result.exit_code == 2);
    CHECK_THAT(result.output, ContainsSubstring(word));
    CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
  }
  const auto json = plan("--length 4 --batch-size 3 --ranks 2 --split-batches --json");
  CHECK(json.exit_code == 2);
  CHECK(Json::parse(json.output.substr(json.output.find('{'))).contains("error"));
}

TEST_CASE("bench allreduce prints an object a size, and says which size is none") {
  const std::string bench = std::string(TANDEM_TOOL) + " bench allreduce --ranks 2 ";
  const auto result = run_program(bench + "--sizes 1K,100000 --json");
  CHECK(result.exit_code == 0);
  std::istringstream lines(result.output);
  for (const std::int64_t bytes : {1024, 100'000}) {
    std::string line;
    REQUIRE(std::getline(lines, line));
    const auto json = Json::parse(line);
    CHECK(json["ranks"] == 2);
    CHECK(json["bytes"] == bytes);
    CHECK(json["seconds"].get<double>() > 0);
    CHECK(json["memcpy_seconds"].get<double>() > 0);
  }
  for (const char* sizes : {"1X", "0", "3", "''", "1K,,2K", "99999999G"}) {
    const auto wrong = run_program(bench + "--sizes " + sizes);
    CHECK(wrong.exit_code == 2);
    CHECK_THAT(wrong.output, ContainsSubstring("--sizes"));
  }
}
