// Settings in a file: train --config, and build/apps/tandem config, which asks for them.
#include <nlohmann/json.hpp>

#include "support/train_program.h"

using namespace tandem::test;
using Json = nlohmann::json;

namespace {

// Runs `tandem config FILE` with these lines as answers.
ProgramResult answer(const std::string& path, const std::string& lines, const std::string& flags = "") {
  return run_program("printf '" + lines + "' | " + TANDEM_TOOL + " config " + path + " " + flags);
}

Json read_json(const std::string& path) {
  std::ifstream file(path);
  return Json::parse(file);
}

}  // namespace

TEST_CASE("settings of a file count, and flags win over them") {
  const TempDir dir;
  std::ofstream(dir / "c.json") << R"({"cpu": 2, "hidden": [16, 8], "limit-train-samples": 400, "epochs": 1,
                                       "batch-size": 20, "lr": 0.01, "no-shuffle": true, "save-weights": ")"
                                << (dir / "w") << "\"}";
  REQUIRE(run_train("--config " + (dir / "c.json") + " --quiet --log-json " + (dir / "log")).exit_code == 0);
  const auto log = read_log(dir / "log");
  CHECK(log.size() == 11);
  CHECK(log[0]["lr"] == 0.01);
  CHECK(std::filesystem::exists(dir / "w"));
  const auto flags = losses_of(
      "--cpu 2 --hidden 16,8 --limit-train-samples 400 --epochs 1 --batch-size 20 --lr 0.01 "
      "--no-shuffle");
  for (std::size_t i = 0; i < flags.size(); ++i) CHECK(log[i]["loss"] == flags[i]);
  REQUIRE(
      run_train("--quiet --lr 0.5 --global-batch-size 80 --config " + (dir / "c.json") + " --log-json " + (dir / "log"))
          .exit_code == 0);
  CHECK(read_log(dir / "log").size() == 6);
  CHECK(read_log(dir / "log")[0]["lr"] == 0.5);
}

TEST_CASE("what is wrong in a file is one sentence that names file and key") {
  const TempDir dir;
  const std::string path = dir / "c.json";
  const std::vector<std::pair<std::string, std::string>> cases{{R"({"cpu": 2, "epoch": 1})", "'epoch'"},
                                                               {R"({"lr": "fast"})", "'lr'"},
                                                               {R"({"lr": -1})", "'lr'"},
                                                               {R"({"model": "rnn"})", "'model'"},
                                                               {R"({"hidden": [5, "x"]})", "'hidden'"},
                                                               {R"({"cpu": 0})", "'cpu'"},
                                                               {R"({"cpu": null})", "'cpu'"},
                                                               {R"({"cpu": {"a": 1}})", "'cpu'"},
                                                               {R"({"drop-last": "perhaps"})", "'drop-last'"},
                                                               {R"({"config": "x"})", "'config'"},
                                                               {R"({"help": true})", "'help'"},
                                                               {R"([1, 2])", "JSON object"},
                                                               {R"({"cpu": 2)", "no JSON"},
                                                               {"", "no JSON"}};
  for (const auto& [text, word] : cases) {
    std::ofstream(path) << text;
    const auto result = run_train("--config " + path);
    CAPTURE(text, result.output);
    CHECK(result.exit_code == 2);
    CHECK_THAT(result.output, ContainsSubstring(path) && ContainsSubstring(word));
    CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
  }
  CHECK(run_train("--config " + (dir / "nothing")).exit_code == 2);
}

TEST_CASE("the answers to config train, and what is not answered is the default") {
  const TempDir dir;
  const std::string path = dir / "train.json";
  // model, hidden, data-file, data-dir, cpu, batch-size, epochs, optimizer, lr, and nothing more
  const auto result = answer(path, "mlp\\n16,8\\n\\n\\n2\\n20\\n1\\nsgd\\n0.02\\n\\n\\n\\n\\n\\n\\n\\n\\n");
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  const Json settings = read_json(path);
  CHECK(settings["hidden"] == Json({16, 8}));
  CHECK(settings["cpu"] == 2);
  CHECK(settings["optimizer"] == "sgd");
  CHECK(settings["lr"] == 0.02);
  CHECK(settings["mixed-precision"] == "no");
  CHECK(!settings.contains("save-weights"));
  CHECK_THAT(result.output, ContainsSubstring("(cnn, gpt, gpt2, mlp, resnet18, resnet34, resnet50, vit_b_16) [mlp]"));
  CHECK(!settings.contains("layers"));
  CHECK(losses_of("--config " + path + " --limit-train-samples 400").size() == 10);
}

TEST_CASE("config refuses a bad answer with the reason, and asks again") {
  const TempDir dir;
  const auto result = answer(dir / "c", "rnn\\ncnn\\n\\n\\ntwo\\n0\\n2\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK_THAT(
      result.output,
      ContainsSubstring(
          "rnn is none of cnn, gpt, gpt2, mlp, resnet18, resnet34, resnet50, vit_b_16, nor a file of TorchScript") &&
          ContainsSubstring("two"));
  CHECK(read_json(dir / "c")["model"] == "cnn");
  CHECK(read_json(dir / "c")["cpu"] == 2);
}

TEST_CASE("config takes no path that JSON cannot hold") {
  const TempDir dir;
  const auto result = answer(dir / "c", "mlp\\n\\n\\377\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("is no UTF-8, which the file has to be"));
  CHECK_NOTHROW(read_json(dir / "c"));
}

TEST_CASE("config writes nothing when its input ends, and replaces no file unasked") {
  const TempDir dir;
  const auto ended = answer(dir / "c", "mlp\\n");
  CHECK(ended.exit_code == 2);
  CHECK_THAT(ended.output, ContainsSubstring("the input ended at the question for 'hidden'"));
  CHECK(!std::filesystem::exists(dir / "c"));
  std::ofstream(dir / "mine") << "mine";
  const auto there = answer(dir / "mine", "");
  CHECK(there.exit_code == 2);
  CHECK_THAT(there.output, ContainsSubstring("--force"));
  CHECK(std::filesystem::file_size(dir / "mine") == 4);
}
