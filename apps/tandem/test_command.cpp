// tandem test: self-test of this machine's ranks.
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include <nlohmann/json.hpp>

#include "backend/backend.h"
#include "command.h"
#include "env.h"
#include "io/json_text.h"
#include "self_test.h"
#include "tandem/core/error.h"
#include "temporary_directory.h"

namespace tandem_tool {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr const char* kAllGpus = "all";
constexpr const char* kReport = "tandem-gpus.json";  // where --gpus says no number

struct TestOptions {
  std::optional<int> cpu;
  std::string gpus;  // a number, or kAllGpus; empty: not asked for
  std::vector<int> devices;
  std::string transport = "automatic";
  int timeout = 120;  // seconds, of a part
  bool json = false;
  std::string report;  // empty: none
};

const std::map<std::string, tandem::Transport> kTransports{{"automatic", tandem::Transport::automatic},
                                                           {"nccl", tandem::Transport::nccl},
                                                           {"peer-memory", tandem::Transport::peer_memory}};

// Collects what the parts say, and prints it.
class Verdict {
 public:
  Verdict(bool as_json, std::string ranks) : as_json_(as_json), ranks_(std::move(ranks)) {
    if (!as_json_) std::printf("testing %s\n", ranks_.c_str());
  }

  void add(const std::string& part, bool passed, const SelfTestResult& found, double seconds) {
    const std::string& detail = found.text;
    passed_ = passed_ && passed;
    parts_.push_back({{"part", part}, {"passed", passed}, {"detail", detail}, {"seconds", seconds}});
    if (!found.figures.is_null()) parts_.back()["figures"] = found.figures;
    write_report();
    if (!as_json_)
      std::printf("%-12s %-7s %6.2f s  %s\n", part.c_str(), passed ? "passed" : "FAILED", seconds, detail.c_str());
    std::fflush(stdout);
  }

  /// Writes all to `path` from now on, after each part, so that what ends in the middle keeps what it found.
  void report_to(const std::string& path) {
    report_ = path;
    environment_ = describe_environment();
    write_report();
  }

  int finish() const {
    if (!report_.empty() && !as_json_)
      std::printf("%s has all of it, without names of people, hosts and folders: please send it in an issue\n",
                  report_.c_str());
    if (as_json_)
      std::printf("%s\n",
                  tandem::io::shown_json(Json{{"ranks", ranks_}, {"parts", parts_}, {"passed", passed_}}).c_str());
    else
      std::printf("%s\n", passed_ ? "passed: this machine's ranks work" : "FAILED: see above");
    std::fflush(stdout);
    return passed_ ? apps::kDone : apps::kFailed;
  }

 private:
  void write_report() const {
    if (report_.empty()) return;
    const Json all{{"environment", environment_}, {"ranks", ranks_}, {"parts", parts_}, {"passed", passed_}};
    std::ofstream file(report_);
    file << without_names(tandem::io::shown_json(all, 1)) << '\n';
    if (!file.flush()) throw tandem::ConfigError("--report '" + report_ + "' cannot be written");
  }

  const bool as_json_;
  const std::string ranks_;
  std::string report_;  // empty: none
  Json environment_;
  Json parts_ = Json::array();
  bool passed_ = true;
};

// Calls a function unless it is gone before `seconds` are over. What hangs in a driver cannot be ended in another way
// than with the process.
class Deadline {
 public:
  Deadline(double seconds, std::function<void()> too_late)
      : thread_([this, seconds, too_late = std::move(too_late)](const std::stop_token& stop) {
          std::unique_lock lock(mutex_);
          const bool ended = condition_.wait_for(lock, stop, std::chrono::duration<double>(seconds),
                                                 [&] { return stop.stop_requested(); });
          if (!ended && !stop.stop_requested()) too_late();
        }) {}

 private:
  std::mutex mutex_;
  std::condition_variable_any condition_;
  std::jthread thread_;  // stops and joins
};

// Throws tandem::ConfigError where there is no GPU.
std::optional<int> gpus_of(const TestOptions& options) {
  if (options.gpus.empty()) return std::nullopt;
  return options.gpus == kAllGpus ? tandem::gpu_backend()->device_count() : std::stoi(options.gpus);
}

tandem::LaunchConfig config_of(const TestOptions& options) {
  tandem::LaunchConfig config{.gpus = gpus_of(options),
                              .devices = options.devices,
                              .cpu = options.cpu,
                              .transport = kTransports.at(options.transport),
                              .timeout = std::chrono::seconds(std::max(1, options.timeout / 2))};
  config.cancel = stop_when_interrupted();
  return config;
}

std::string in_words(const tandem::AcceleratorState& state) {
  const int ranks = state.world_size();
  return std::to_string(ranks) + " " + state.backend_name + " rank" + (ranks == 1 ? "" : "s");
}

void run_part(const SelfTestPart& part, const tandem::LaunchConfig& config, int timeout, Verdict& verdict) {
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  auto deadline = std::make_unique<Deadline>(timeout, [&] {
    verdict.add(part.name, false, "did not end within " + std::to_string(timeout) + " s", seconds());
    TemporaryDirectory::remove_any();
    _exit(verdict.finish());
  });
  SelfTestResult found("");
  const int code = apps::exit_code_of(
      [&] {
        found = part.run(config);
        return apps::kDone;
      },
      [&](const std::string& what) { found = SelfTestResult(what); });
  deadline.reset();
  if (code == apps::kInterrupted) throw tandem::Cancelled("interrupted");
  verdict.add(part.name, code == apps::kDone, found, seconds());
}

int run_self_test(const TestOptions& options) {
  const tandem::LaunchConfig config = config_of(options);
  const tandem::AcceleratorState state = tandem::examine(config);
  Verdict verdict(options.json, in_words(state));
  const std::string report = options.report.empty() && options.gpus == kAllGpus ? kReport : options.report;
  if (!report.empty()) verdict.report_to(report);
  std::vector<SelfTestPart> parts{test_collectives(), test_training(), test_dispatch(), test_checkpoint()};
  if (!options.gpus.empty())
    for (SelfTestPart& part : tests_of_gpus()) parts.push_back(std::move(part));
  for (const SelfTestPart& part : parts) run_part(part, config, options.timeout, verdict);
  return verdict.finish();
}

}  // namespace

void add_test(CLI::App& tandem, Commands& commands) {
  const auto options = std::make_shared<TestOptions>();
  auto* test = tandem.add_subcommand("test", "Tests this machine's ranks; exit code 1 when something does not work.");
  auto* ranks = test->add_option("--ranks", options->cpu, "N ranks on the CPU (default: as train: all GPUs, or cores)")
                    ->check(CLI::Range(1, 256));
  auto* gpus = test->add_option("--gpus", options->gpus,
                                "the first N GPUs, or all: also what is between each two of them, and how training "
                                "scales")
                   ->type_name("[N]")
                   ->expected(0, 1)
                   ->default_str(kAllGpus)
                   ->check(CLI::IsMember({kAllGpus}) | CLI::Range(1, 256))
                   ->excludes(ranks);
  test->add_option("--devices", options->devices, "these GPUs, such as 0,2,3; one named twice has two ranks")
      ->delimiter(',')
      ->check(CLI::Range(0, 1023))
      ->excludes(ranks)
      ->excludes(gpus);
  test->add_option("--transport", options->transport, "how GPU ranks exchange data")
      ->check(CLI::IsMember(kTransports))
      ->capture_default_str();
  test->add_option("--timeout", options->timeout, "seconds after which a part that has not ended counts as failed")
      ->check(CLI::Range(1, 86'400))
      ->capture_default_str();
  test->add_flag("--json", options->json, "print JSON");
  test->add_option("--report", options->report,
                   std::string("also write a file for an issue: no names of people, hosts and folders are in it "
                               "(default with --gpus alone: ") +
                       kReport + ")");
  test->footer(
      "Examples:\n  tandem test\n  tandem test --ranks 4\n  tandem test --gpus\n  tandem test --gpus 2 --transport "
      "nccl --json");
  commands.push_back({test, [options] { return run_self_test(*options); }});
}

}  // namespace tandem_tool
