// What becomes of train's flags when a training goes on from a checkpoint.
#include "train/resumed_flags.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>

#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "tandem/io/checkpoint_series.h"
#include "tandem/io/pickle_file.h"
#include "train/options.h"

using namespace tandem;
using tandem::test::read_log;
using tandem::test::TempDir;
namespace fs = std::filesystem;

namespace {

test::ProgramResult run(const std::string& arguments) {
  return test::run_train(arguments);
}  // train is a namespace here

const std::string kBase = "--cpu 1 --hidden 8 --batch-size 50 --limit-train-samples 200 --no-progress";  // 4 updates

std::vector<double> rates_in(const std::string& log) {
  std::vector<double> rates;
  for (const auto& line : read_log(log))
    if (line.contains("lr")) rates.push_back(line["lr"]);
  return rates;
}

// Trains an epoch with `first`, for `go_on` to go on from.
struct Begun {
  explicit Begun(const std::string& first, const std::string& base = kBase) : base(base) {
    const auto begun = run(base + " --epochs 1 " + first + " --checkpoint-dir " + (dir / "c"));
    CAPTURE(first, begun.output);
    REQUIRE(begun.exit_code == 0);
  }

  // Goes on for another epoch.
  test::ProgramResult go_on(const std::string& flags) {
    fs::remove_all(dir / "p");
    fs::remove(log);
    return run(base + " --epochs 2 " + flags + " --resume " + (dir / "c/checkpoint_0") + " --log-json " + log +
               " --log-with jsonl --project-dir " + (dir / "p"));
  }

  // A flag as the run's record has it.
  std::string recorded(const std::string& flag) const {
    const auto config = read_log(dir / "p/log.jsonl").at(0).at("config");
    return config.contains(flag) ? config.at(flag).dump() : "";
  }

  std::string base;
  TempDir dir;
  std::string log = dir / "log";
};

// A flag with two values.
struct Flag {
  std::string name, first, second, base = kBase;
};

void check_inherited(const Flag& flag) {
  CAPTURE(flag.name);
  REQUIRE(train::on_resume(flag.name) == train::OnResume::inherited);
  const auto with = [&](const std::string& value) { return "--" + flag.name + "=" + value; };
  Begun training(with(flag.first), flag.base);
  const auto inherited = training.go_on("");
  CAPTURE(inherited.output);
  REQUIRE(inherited.exit_code == 0);
  CHECK_THAT(inherited.output, !ContainsSubstring("from here on"));
  CHECK_THAT(training.recorded(flag.name), ContainsSubstring(flag.first));
  const auto given = training.go_on(with(flag.second));
  CAPTURE(given.output);
  REQUIRE(given.exit_code == 0);
  CHECK_THAT(given.output, ContainsSubstring("--" + flag.name + " is " + flag.second + " from here on"));
  CHECK_THAT(training.recorded(flag.name), ContainsSubstring(flag.second));
}

// Four epochs, of which two are trained as if they were all, and then the others.
void check_longer(const std::string& schedule) {
  CAPTURE(schedule);
  const TempDir dir;
  const std::string flags = kBase + " --quiet --scheduler " + schedule;
  REQUIRE(run(flags + " --epochs 4 --log-json " + (dir / "straight")).exit_code == 0);
  const std::string checkpoints = " --checkpoint-dir " + (dir / "c");
  REQUIRE(run(flags + " --epochs 2" + checkpoints).exit_code == 0);
  const auto resumed = run(flags + " --epochs 4 --resume auto --log-json " + (dir / "log") + checkpoints);
  CAPTURE(resumed.output);
  REQUIRE(resumed.exit_code == 0);
  const auto straight = rates_in(dir / "straight"), rates = rates_in(dir / "log");
  REQUIRE(straight.size() == 16);
  CHECK(rates == std::vector<double>(straight.begin() + 8, straight.end()));
  for (const double rate : rates) CHECK(rate > 0.0);
}

}  // namespace

TEST_CASE("every flag of train has a decision about what becomes of it when a training goes on") {
  const auto app = train::describe_command_line();
  for (const CLI::Option* option : app->get_options()) {
    const std::string name = option->get_single_name();
    CAPTURE(name);
    CHECK((name == "help" || train::on_resume(name).has_value()));
  }
}

TEST_CASE("a flag that is given anew is used, told in a line, and what is recorded is what is used") {
  Begun training("--lr 0.001");
  const auto result = training.go_on("--lr 1e-5");
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("--lr is 1e-05 from here on; in the checkpoint it is 0.001"));
  CHECK(training.recorded("lr") == "1e-05");
  CHECK(rates_in(training.log) == std::vector<double>(4, 1e-5));
}

TEST_CASE("every flag of how to update is the checkpoint's where it is not given, and otherwise used and told") {
  const std::string sgd = kBase + " --optimizer sgd";
  for (const Flag& flag : std::vector<Flag>{{"lr", "0.02", "0.03"},
                                            {"momentum", "0.5", "0.9", sgd},
                                            {"weight-decay", "0.25", "0.125"},
                                            {"scheduler", "cosine", "linear"},
                                            {"warmup-steps", "1", "2"},
                                            {"mixed-precision", "bf16", "no"},
                                            {"gradient-accumulation-steps", "2", "1"},
                                            {"clip-grad-norm", "0.5", "0.25"}})
    check_inherited(flag);
}

TEST_CASE("every flag of the data is the checkpoint's where it is not given, and otherwise used and told") {
  const std::string all = "--cpu 1 --hidden 8 --batch-size 50 --no-progress";
  for (const Flag& flag : std::vector<Flag>{{"normalize", "none", "mnist"},
                                            {"limit-train-samples", "100", "150", all},
                                            {"drop-last", "true", "false"},
                                            {"no-even-batches", "true", "false"},
                                            {"no-shuffle", "true", "false"},
                                            {"dispatch-batches", "true", "false"}})
    check_inherited(flag);
}

TEST_CASE("a flag that would make it another training is refused, by name") {
  for (const auto& [first, second] :
       std::vector<std::pair<std::string, std::string>>{{"--seed 1", "--seed 2"},
                                                        {"--optimizer adamw", "--optimizer sgd"},
                                                        {"--model mlp", "--model cnn"},
                                                        {"--freeze backbone", "--freeze head"},
                                                        {"--lr-scale head=2", "--lr-scale head=3"},
                                                        {"", "--ema 0.9"},
                                                        {"--scheduler cosine", "--scheduler plateau"},
                                                        {"--scheduler plateau", "--scheduler cosine"}}) {
    Begun training(first, "--cpu 1 --batch-size 50 --limit-train-samples 100 --no-progress");
    const auto result = training.go_on(second);
    CAPTURE(first, second, result.output);
    CHECK(result.exit_code == 2);
    CHECK_THAT(result.output, ContainsSubstring(second + " cannot go on from a checkpoint that was made with"));
  }
}

TEST_CASE("sizes of the model that are not given are the checkpoint's") {
  const TempDir dir;
  const std::string flags =
      "--cpu 1 --batch-size 50 --limit-train-samples 100 --no-progress --checkpoint-dir " + (dir / "c");
  REQUIRE(run(flags + " --hidden 6,5 --epochs 1").exit_code == 0);
  const auto resumed = run(flags + " --epochs 2 --resume auto");
  CAPTURE(resumed.output);
  CHECK(resumed.exit_code == 0);
}

TEST_CASE("with more epochs a schedule that falls smoothly goes on at the rates of the longer training") {
  for (const char* schedule : {"linear", "polynomial", "cosine", "cosine --warmup-steps 2", "exponential"})
    check_longer(schedule);
}

TEST_CASE("with more epochs a schedule that falls in steps, or rises, goes on at the rates of the longer training") {
  for (const char* schedule : {"constant", "step", "multi-step", "cosine-restarts", "one-cycle"})
    check_longer(schedule);
}

TEST_CASE("plateau goes on with more epochs, at a learning rate that is given anew too") {
  Begun training("--scheduler plateau --lr 0.004");
  CHECK(training.go_on("").exit_code == 0);
  CHECK(rates_in(training.log) == std::vector<double>(4, 0.004));
  CHECK(training.go_on("--lr 0.001").exit_code == 0);
  CHECK(rates_in(training.log) == std::vector<double>(4, 0.001));
}

TEST_CASE("a checkpoint of an older version, which does not say its flags, goes on with its own learning rate") {
  const TempDir dir;
  const std::string checkpoints = " --checkpoint-dir " + (dir / "c");
  REQUIRE(run(kBase + " --epochs 1 --lr 0.02 --decay-norms" + checkpoints).exit_code == 0);
  const std::string path = io::list_checkpoints(dir / "c").at(0), file = path + "/custom_checkpoint_0.pkl";
  auto state = io::read_pickle(file).toGenericDict();
  REQUIRE(state.erase("flags") == 1);
  {
    std::ofstream out(file, std::ios::binary | std::ios::trunc);
    io::write_pickle(
        [&](const void* data, std::size_t bytes) {
          out.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
        },
        file, state);
  }
  fs::remove(path + "/manifest.json");  // whose sums are not those of the file any more
  const auto resumed = run(kBase + " --epochs 2 --resume " + path + " --log-json " + (dir / "log"));
  CAPTURE(resumed.output);
  CHECK_THAT(resumed.output, ContainsSubstring("of an older version, which does not say its flags"));
}
