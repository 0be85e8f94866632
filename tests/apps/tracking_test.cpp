// train --log-with, and what train shows while it trains.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>

#include <torch/types.h>

#include "data/image_decoder.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "tandem/data/mnist.h"

using namespace tandem;
using namespace tandem::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const std::string kShort = "--hidden 16 --limit-train-samples 400 --epochs 1 --batch-size 20 --no-progress ";

// The run in `directory`, by the type of its lines.
std::map<std::string, std::vector<json>> run_in(const std::string& directory) {
  std::map<std::string, std::vector<json>> lines;
  for (const json& line : read_log(directory + "/log.jsonl")) lines[line["type"]].push_back(line);
  return lines;
}

// The lines of updates, without those that come after the training.
std::vector<json> updates_of(const std::map<std::string, std::vector<json>>& run) {
  std::vector<json> lines = run.at("scalars");
  std::erase_if(lines, [](const json& line) { return !line["values"].contains("train/loss"); });
  return lines;
}

std::string track(const TempDir& dir, const std::string& with = "jsonl") {
  return "--log-with " + with + " --project-dir " + (dir / "run") + " ";
}

// Starts an endless training, waits until it has recorded 3 updates, and sends it a signal.
ProgramResult train_until(const std::string& signal, const TempDir& dir) {
  const std::string log = dir / "run/log.jsonl";
  return run_program(std::string(TANDEM_TRAIN) + " --cpu 2 --hidden 16 --epochs 100000 --no-progress --log-every 1 " +
                     track(dir, "jsonl,csv,tensorboard") + "& until [ \"$(cat " + log +
                     " 2>/dev/null | wc -l)\" -ge 4 ]; do kill -0 $! || exit 99; sleep 0.02; "
                     "done; kill -" +
                     signal + " $!; wait $!");
}

}  // namespace

TEST_CASE("the record has the numbers of --log-json, with times and memory of every rank") {
  const TempDir dir;
  const auto result = run_train("--cpu 2 " + kShort + track(dir) + "--log-every 1 --log-json " + (dir / "log"));
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  const auto expected = read_log(dir / "log");
  const auto run = run_in(dir / "run");
  const auto updates = updates_of(run);
  REQUIRE(updates.size() == 10);
  for (std::size_t i = 0; i < 10; ++i) {
    const json& values = updates[i]["values"];
    CHECK(updates[i]["step"] == expected[i]["step"]);
    CHECK(values["train/loss"] == expected[i]["loss"]);
    CHECK(values["train/lr"] == expected[i]["lr"]);
    CHECK(values["train/grad_norm"] == expected[i]["grad_norm"]);
    CHECK(values["train/epoch"] == expected[i]["epoch"].get<double>());
    CHECK(values["perf/samples_per_second"] > 0);
    CHECK(values["perf/step_ms"] > 0);
    CHECK(values["memory/rss_mb"] > 10);
    for (const char* rank : {"0", "1"})
      for (const char* part : {"data_wait", "forward", "backward", "communication", "optimizer", "other"}) {
        CAPTURE(rank, part);
        CHECK(values[std::string("perf/rank") + rank + "/" + part + "_ms"] > 0);
      }
    CHECK_FALSE(values.contains("perf/rank2/other_ms"));
  }
  const json& begin = run.at("run").at(0);
  CHECK(begin["ranks"] == 2);
  CHECK(begin["device"] == "cpu");
  CHECK(begin["versions"]["libtorch"].get<std::string>().starts_with("2."));
  CHECK(begin["config"]["lr"] == 0.001);
  CHECK(begin["config"]["batch-size"] == 20);
  CHECK(begin["config"]["hidden"] == 16);
  CHECK(begin["config"]["optimizer"] == "adamw");
  CHECK(begin["config"]["no-progress"] == true);
  CHECK_FALSE(begin["config"].contains("block-size"));
  const json& end = run.at("end").at(0);
  CHECK(end["status"] == "finished");
  CHECK(end["values"]["test/accuracy"] == expected[10]["final"]["accuracy"]);
}

TEST_CASE("log-every records means of so many updates, and what is left at the end") {
  const TempDir dir;
  const std::string common = "--cpu 2 --no-even-batches --gradient-accumulation-steps 2 " + kShort;
  const auto each = losses_of(common + track(dir) + "--log-every 2");
  REQUIRE(each.size() == 5);
  const auto updates = updates_of(run_in(dir / "run"));
  REQUIRE(updates.size() == 4);
  const std::vector<std::pair<int, double>> expected{
      {1, each[0]}, {2, each[1]}, {4, (each[2] + each[3]) / 2}, {5, each[4]}};
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(updates[i]["step"] == expected[i].first);
    CHECK(updates[i]["values"]["train/loss"].get<double>() == Approx(expected[i].second));
  }
}

TEST_CASE("tracking changes no weights") {
  const TempDir dir;
  const auto plain = losses_of("--cpu 2 " + kShort);
  CHECK(losses_of("--cpu 2 " + kShort + track(dir, "jsonl,csv,tensorboard") + "--log-every 3") == plain);
}

TEST_CASE("the test set's confusion and worst pictures are those of the test set, however it is divided") {
  const TempDir dir;
  const std::string flags = GENERATE("--cpu 1", "--cpu 3", "--cpu 3 --dispatch-batches", "--cpu 3 --no-even-batches",
                                     "--cpu 2 --split-batches");
  CAPTURE(flags);
  REQUIRE(run_train(flags + " " + kShort + track(dir)).exit_code == 0);
  const auto run = run_in(dir / "run");
  const json& matrix = run.at("matrix").at(0);
  CHECK(matrix["name"] == "eval/confusion");
  CHECK(matrix["labels"].size() == 10);
  auto test_set =
      data::mnist(std::string(std::getenv("TANDEM_SOURCE_DIR")) + "/data/mnist", {.split = data::MnistSplit::test});
  std::vector<std::size_t> all(10'000);
  std::iota(all.begin(), all.end(), 0);
  const auto samples = test_set.get_batch(all);
  double right = 0;
  for (std::size_t row = 0; row < 10; ++row) {
    double samples_of_class = 0;
    for (const auto& count : matrix["values"][row]) samples_of_class += count.get<double>();
    CHECK(samples_of_class == samples.target.eq(static_cast<std::int64_t>(row)).sum().item<double>());
    right += matrix["values"][row][row].get<double>();
  }
  CHECK(right / 10'000 == Approx(run.at("end").at(0)["values"]["test/accuracy"].get<double>()));

  const json& worst = run.at("images").at(0);
  CHECK(worst["name"] == "eval/worst");
  REQUIRE(worst["files"].size() == 16);
  const at::Tensor bytes = ((samples.data - samples.data.amin()) / (samples.data.amax() - samples.data.amin()) * 255)
                               .round()
                               .to(at::kByte)
                               .view({-1, 784});
  for (std::size_t i = 0; i < 16; ++i) {
    std::ifstream file(dir / "run/" + worst["files"][i].get<std::string>(), std::ios::binary);
    const std::vector<std::uint8_t> png((std::istreambuf_iterator<char>(file)), {});
    const auto picture = data::decode_image("worst", png, {.channels = 1});
    const at::Tensor found = bytes.eq(picture.pixels.view({1, 784})).all(1).nonzero();
    REQUIRE(found.numel() >= 1);
    const auto label = samples.target[found[0].item<std::int64_t>()].item<std::int64_t>();
    const auto caption = worst["captions"][i].get<std::string>();
    CHECK(caption.starts_with(std::to_string(label) + ", taken for "));
  }
}

TEST_CASE("all trackers write, and a gpt's sample and loss are recorded") {
  const TempDir dir;
  REQUIRE(run_train("--cpu 2 --model gpt --layers 1 --width 16 --heads 2 --block-size 16 --batch-size 8 --max-steps 20 "
                    "--sample-bytes 20 --no-progress --data-file " +
                    write_text(dir, 20'000) + " " + track(dir, "jsonl,csv,tensorboard"))
              .exit_code == 0);
  const auto run = run_in(dir / "run");
  CHECK(run.at("text").at(0)["name"] == "sample");
  CHECK(run.at("scalars").back()["values"]["eval/loss"] > 0);
  CHECK(run.at("scalars").back()["values"]["eval/bits_per_byte"] > 0);
  CHECK(run.at("end").at(0)["values"]["test/loss"] > 0);
  CHECK_FALSE(run.contains("matrix"));
  CHECK(fs::file_size(dir / "run/scalars.csv") > 1000);
  const auto is_event_file = [](const auto& entry) {
    return entry.path().filename().string().starts_with("events.out.tfevents.") && entry.file_size() > 1000;
  };
  CHECK(std::any_of(fs::directory_iterator(dir / "run"), {}, is_event_file));
}

TEST_CASE("an interrupted training says so in its record, and a killed one leaves whole lines") {
  const TempDir dir;
  const auto interrupted = train_until("TERM", dir);
  CAPTURE(interrupted.output);
  CHECK(interrupted.exit_code == 130);
  auto run = run_in(dir / "run");
  CHECK(run.at("end").at(0)["status"] == "interrupted");
  CHECK_FALSE(run.at("end").at(0)["values"].contains("test/accuracy"));
  CHECK(updates_of(run).back()["step"] == run.at("end").at(0)["values"]["train/steps"]);
  fs::remove_all(dir / "run");
  CHECK(train_until("KILL", dir).exit_code == 137);
  run = run_in(dir / "run");  // throws for a line that is no JSON
  CHECK(run.at("scalars").size() >= 3);
  CHECK_FALSE(run.contains("end"));
}

TEST_CASE("a training that fails says so in its record") {
  const TempDir dir;
  fs::create_directory(dir / "gone");
  // It is there when it is looked at, and gone when the weights are written.
  const auto failed =
      run_program(std::string(TANDEM_TRAIN) + " --cpu 2 --hidden 16 --max-steps 300 --no-progress --log-every 1 " +
                  track(dir) + "--save-weights " + (dir / "gone/w") + " & until [ -e " + (dir / "run/log.jsonl") +
                  " ]; do kill -0 $! || exit 99; sleep 0.02; done; rmdir " + (dir / "gone") + "; wait $!");
  CAPTURE(failed.output);
  CHECK(failed.exit_code == 1);
  CHECK(run_in(dir / "run").at("end").at(0)["status"] == "failed");
}

TEST_CASE("a tracker without a disk is told of once, and training goes on") {
  const TempDir dir;
  fs::create_directory(dir / "run");
  fs::create_symlink("/dev/full", dir / "run/scalars.csv");
  const auto result = run_train("--cpu 2 " + kShort + track(dir, "csv,jsonl"));
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  const std::string warning = "train: warning: tracker 'csv' failed and is left out from now on: ";
  const std::size_t first = result.output.find(warning);
  REQUIRE(first != std::string::npos);
  CHECK(result.output.find("warning", first + warning.size()) == std::string::npos);
  CHECK_THAT(result.output, ContainsSubstring("No space left on device") && ContainsSubstring("test accuracy"));
  CHECK(run_in(dir / "run").at("end").at(0)["status"] == "finished");
}

TEST_CASE("with a profile the parts of the time are the profile's") {
  const TempDir dir;
  const auto result =
      run_train("--cpu 2 " + kShort + track(dir) + "--profile-steps 2:5 --profile " + (dir / "profile"));
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  const auto updates = updates_of(run_in(dir / "run"));
  CHECK(updates.back()["values"]["perf/step_ms"] > 0);
  CHECK_FALSE(updates.back()["values"].contains("perf/rank0/forward_ms"));
}

TEST_CASE("wrong arguments for tracking get one sentence that names flag and value") {
  const TempDir dir;
  std::ofstream(dir / "file") << "x";
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases{
      {"--log-with jsonl", {"--log-with", "--project-dir"}},
      {"--project-dir p", {"--project-dir", "--log-with"}},
      {"--log-with wandb --project-dir p", {"--log-with", "wandb", "tensorboard"}},
      {"--log-with csv,x --project-dir p", {"--log-with", "x", "jsonl"}},
      {"--log-every 5", {"--log-every", "--log-with"}},
      {"--log-with csv --project-dir p --log-every 0", {"--log-every", "0"}},
      {"--log-with csv --project-dir " + (dir / "file/p"), {"--project-dir", dir / "file/p", "cannot be made"}},
      {"--log-with csv --project-dir /proc", {"--project-dir", "/proc"}}};
  for (const auto& [arguments, words] : cases) {
    const auto result = run_train("--cpu 2 " + arguments);
    CAPTURE(arguments, result.output);
    CHECK(result.exit_code == 2);
    CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
    for (const auto& word : words) CHECK_THAT(result.output, ContainsSubstring(word));
  }
}
