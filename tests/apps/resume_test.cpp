// Trainings that are stopped in any way and go on.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "support/catch.h"
#include "support/file_bytes.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "tandem/io/checkpoint_series.h"

using namespace tandem;
using tandem::test::bytes_of;
using tandem::test::read_log;
using tandem::test::run_train;
using tandem::test::TempDir;
namespace fs = std::filesystem;

namespace {

// The log without what depends on time.
std::vector<nlohmann::json> untimed_log(const std::string& path) {
  auto lines = read_log(path);
  for (auto& line : lines) line.erase("samples_per_second");
  if (!lines.empty() && lines.back().contains("final")) {
    auto& final = lines.back()["final"];
    for (const char* key : {"train_seconds", "samples_per_second", "startup_seconds", "peak_rss_mb"}) final.erase(key);
  }
  return lines;
}

// Runs train, kills it after `after` if it has not ended, and says whether it had ended well before.
bool ends_before_kill(const std::string& arguments, const std::string& output, std::chrono::milliseconds after) {
  const pid_t child = fork();
  if (child == 0) {
    const int file = open(output.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    execl("/bin/sh", "sh", "-c", ("exec " + std::string(TANDEM_TRAIN) + " " + arguments).c_str(), nullptr);
    _exit(99);
  }
  const auto end = std::chrono::steady_clock::now() + after;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() >= end) kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  if (WIFSIGNALED(status)) return false;
  CAPTURE(bytes_of(output));
  REQUIRE(WEXITSTATUS(status) == 0);
  return true;
}

void goes_on_after_kills(int wanted, unsigned seed) {
  const TempDir dir;
  const std::string flags =
      "--cpu 2 --hidden 8 --batch-size 16 --limit-train-samples 3200 --epochs 12 --no-progress "
      "--optimizer sgd --momentum 0.5";
  const auto start = std::chrono::steady_clock::now();
  REQUIRE(run_train(flags + " --log-json " + (dir / "whole.log") + " --save-weights " + (dir / "whole.weights"))
              .exit_code == 0);
  const std::chrono::duration<double, std::milli> whole = std::chrono::steady_clock::now() - start;
  std::mt19937 random(seed);
  int kills = 0;
  for (int training = 0; kills < wanted; ++training) {
    const std::string name = dir / std::to_string(training);
    const std::string all = flags + " --log-json " + name + ".log --save-weights " + name + ".weights --save-every 5 " +
                            "--checkpoint-dir " + name + " --total-limit 2 --resume auto";
    // At any moment of a run, however busy the machine is; the last goes to its end.
    const auto after = [&] {
      const double part = kills < wanted ? std::uniform_real_distribution(0.15, 0.9)(random) : 100;
      return std::chrono::milliseconds(std::llround(part * whole.count()));
    };
    while (!ends_before_kill(all, dir / "output", after())) kills += 1;
    CAPTURE(kills, training);
    REQUIRE(bytes_of(name + ".weights") == bytes_of(dir / "whole.weights"));
    REQUIRE(untimed_log(name + ".log") == untimed_log(dir / "whole.log"));
  }
}

}  // namespace

TEST_CASE("train goes on from a checkpoint to the same weights and log") {
  const std::string how = GENERATE("--cpu 2", "--cpu 1 --optimizer sgd --momentum 0.9 --scheduler one-cycle",
                                   "--cpu 2 --scheduler plateau --no-even-batches --batch-size 45",
                                   "--cpu 2 --dispatch-batches --warmup-steps 5 --scheduler cosine",
                                   "--cpu 2 --gradient-accumulation-steps 3 --mixed-precision fp16");
  const TempDir dir;
  const std::string flags = how + " --hidden 16 --limit-train-samples 1000 --epochs 3 --no-progress";
  const auto files = [&](const std::string& name) {
    return " --log-json " + (dir / (name + ".log")) + " --save-weights " + (dir / (name + ".weights"));
  };
  REQUIRE(run_train(flags + files("whole")).exit_code == 0);
  REQUIRE(run_train(flags + files("part") + " --checkpoint-dir " + (dir / "c") + " --save-every 1").exit_code == 0);
  const auto checkpoints = io::list_checkpoints(dir / "c");
  REQUIRE(checkpoints.size() >= 9);
  CAPTURE(how);
  for (const std::size_t index : {std::size_t{0}, checkpoints.size() / 3, checkpoints.size() / 2 + 1,
                                  checkpoints.size() - 2, checkpoints.size() - 1}) {
    const auto result = run_train(flags + files("part") + " --resume " + checkpoints[index]);
    CAPTURE(index, result.output);
    REQUIRE(result.exit_code == 0);
    CHECK_THAT(result.output, ContainsSubstring("goes on from step " + std::to_string(index + 1) + " of "));
    CHECK(bytes_of(dir / "part.weights") == bytes_of(dir / "whole.weights"));
    CHECK(untimed_log(dir / "part.log") == untimed_log(dir / "whole.log"));
  }
}

TEST_CASE("another number of ranks goes on with the same global batch and samples") {
  const TempDir dir;
  const std::string flags = "--hidden 16 --limit-train-samples 1000 --epochs 2 --no-progress --global-batch-size 40";
  const auto log = [&](const std::string& name) { return " --log-json " + (dir / name); };
  REQUIRE(run_train("--cpu 1 " + flags + log("whole")).exit_code == 0);
  const std::string c = " --checkpoint-dir " + (dir / "c") + " --save-every 7";
  REQUIRE(run_train("--cpu 1 " + flags + log("part") + c + " --max-steps 14").exit_code == 0);
  for (const char* ranks : {"2", "4", "1"}) {
    const auto result = run_train("--cpu " + std::string(ranks) + " " + flags + log("part") + c + " --resume auto");
    CAPTURE(ranks, result.output);
    REQUIRE(result.exit_code == 0);
    const auto whole = read_log(dir / "whole"), part = read_log(dir / "part");
    REQUIRE(part.size() == whole.size());
    for (std::size_t i = 0; i + 1 < whole.size(); ++i)
      CHECK(part[i]["loss"].get<double>() == Approx(whole[i]["loss"].get<double>()).epsilon(1e-4));
    fs::remove_all(io::list_checkpoints(dir / "c").back());  // so that the next has something to do
  }
  const auto wrong = run_train("--cpu 2 --batch-size 64 --hidden 16 --limit-train-samples 1000 --resume " +
                               io::list_checkpoints(dir / "c").back());
  CHECK(wrong.exit_code == 2);
  CHECK_THAT(wrong.output, ContainsSubstring("--batch-size 64: a step of all ranks has 128 samples") &&
                               ContainsSubstring("use --batch-size 20 or --global-batch-size 40"));
}

TEST_CASE("a signal writes a checkpoint, from which training goes on") {
  const TempDir dir;
  const std::string flags = "--cpu 2 --hidden 16 --epochs 100000 --no-progress --checkpoint-dir " + (dir / "c");
  const std::string log = dir / "log";
  // (Shells let what runs in the background ignore SIGINT.)
  const auto result =
      test::run_program(std::string(TANDEM_TRAIN) + " " + flags + " --log-json " + log + " & until [ \"$(cat " + log +
                        " 2>/dev/null | wc -l)\" -ge 3 ]; do kill -0 $! || exit 99; sleep 0.02; done; "
                        "kill -TERM $!; wait $!");
  CAPTURE(result.output);
  CHECK_THAT(result.output, ContainsSubstring("saved to " + (dir / "c/checkpoint_0")));
  const auto steps = read_log(dir / "log").size() - 1;  // the last line is no update
  const auto resumed = run_train(flags + " --resume auto --max-steps " + std::to_string(steps + 3));
  CAPTURE(resumed.output);
  CHECK(resumed.exit_code == 0);
  CHECK_THAT(resumed.output, ContainsSubstring("goes on from step " + std::to_string(steps)));
}

TEST_CASE("train says what is wrong with checkpoints") {
  const TempDir dir;
  const std::string small = " --cpu 1 --hidden 4 --limit-train-samples 500 --epochs 1";
  CHECK_THAT(run_train("--resume auto" + small).output, ContainsSubstring("--resume auto needs --checkpoint-dir"));
  CHECK_THAT(run_train("--save-every 5" + small).output, ContainsSubstring("--save-every requires --checkpoint-dir"));
  CHECK_THAT(run_train("--resume " + (dir / "nowhere") + small).output, ContainsSubstring("nowhere' is no directory"));
  REQUIRE(run_train("--checkpoint-dir " + (dir / "c") + " --resume auto" + small).exit_code == 0);  // there is none yet
  const auto other =
      run_train("--checkpoint-dir " + (dir / "c") + " --resume auto --cpu 1 --hidden 5 --limit-train-samples 500");
  CHECK(other.exit_code == 1);
  CHECK_THAT(other.output, ContainsSubstring("0.weight' has sizes [4, 784], the model needs [5, 784]"));
  std::ofstream(dir / "file");
  const auto file = run_train("--checkpoint-dir " + (dir / "file") + small);
  CHECK(file.exit_code == 2);
  CHECK_THAT(file.output, ContainsSubstring("--checkpoint-dir '" + (dir / "file") + "' cannot be made"));
}

TEST_CASE("a full disk leaves the checkpoint before, and training goes on") {
  // Needs the right to mount.
  const TempDir dir;
  const std::string mounted = dir / "disk";
  fs::create_directory(mounted);
  if (std::system(("mount -t tmpfs -o size=1500k none " + mounted + " 2>/dev/null").c_str()) != 0) {
    WARN("a disk of 1.5 MB cannot be mounted here: not tested");
    return;
  }
  const auto result = run_train(
      "--cpu 2 --hidden 64 --limit-train-samples 1000 --epochs 3 --no-progress --save-every 4 "
      "--checkpoint-dir " +
      mounted + " --save-weights " + (dir / "w"));
  const auto checkpoints = io::list_checkpoints(mounted);
  const auto resumed = run_train("--cpu 2 --hidden 64 --limit-train-samples 1000 --epochs 3 --no-progress --resume " +
                                 (checkpoints.empty() ? std::string("none") : checkpoints.back()));
  const bool unmounted = std::system(("umount " + mounted).c_str()) == 0;
  CAPTURE(result.output, resumed.output);
  CHECK(unmounted);
  CHECK(result.exit_code == 1);  // the last checkpoint is missing
  CHECK_THAT(result.output, ContainsSubstring("No space left on device") && ContainsSubstring("training goes on"));
  CHECK(checkpoints.size() >= 1);
  CHECK(resumed.exit_code == 0);
}

// 200 kills in all, in parts that each stay within a test's time limit.
TEST_CASE("killed at 25 random moments, training always goes on, and ends with the same weights and log") {
  goes_on_after_kills(25, 5);
}
TEST_CASE("killed at 50 other moments, training goes on", "[.long-kills]") { goes_on_after_kills(50, 6); }
TEST_CASE("killed at 50 moments more, training goes on", "[.long-kills]") { goes_on_after_kills(50, 7); }
TEST_CASE("killed at the last 50 moments, training goes on", "[.long-kills]") { goes_on_after_kills(50, 8); }
TEST_CASE("killed at 25 moments more, training goes on", "[.long-kills]") { goes_on_after_kills(25, 9); }
