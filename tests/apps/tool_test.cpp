// The subcommands of build/apps/tandem that look at the machine: env, test, and what all have in common.
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "common/machine.h"
#include "support/catch.h"
#include "support/run_program.h"
#include "support/temp_dir.h"

using tandem::test::ProgramResult;
using tandem::test::run_program;
using tandem::test::TempDir;
using Json = nlohmann::json;

namespace {

ProgramResult tool(const std::string& arguments, const std::string& before = "") {
  return run_program(before + " " + TANDEM_TOOL + " " + arguments);
}

ProgramResult tool_on_gpus(const std::string& arguments, const std::string& environment = "") {
  return run_program(environment + " " + TANDEM_ON_FAKE_MACHINE + " " + TANDEM_FAKE_GPU_MODULE + " " +
                     TANDEM_FAKE_DRIVER + " " + TANDEM_TOOL + " " + arguments);
}

// The JSON object at the end of an output that may begin with warnings.
Json json_in(const ProgramResult& result) {
  CAPTURE(result.output);
  const std::size_t begin = result.output.find('{');
  REQUIRE(begin != std::string::npos);
  return Json::parse(result.output.substr(begin));
}

void write(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << text << '\n';
}

// A control group of the machine with one core's time; `path` stays empty where this process may make none.
struct OneCoreGroup {
  std::string path;
  OneCoreGroup() {
    for (const std::string top : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"}) {
      const bool second = !std::filesystem::exists(top + "/cpu.cfs_quota_us");
      path = top + "/tandem-test-" + std::to_string(getpid());
      if (mkdir(path.c_str(), 0755) != 0) continue;
      std::ofstream limit(path + (second ? "/cpu.max" : "/cpu.cfs_quota_us"));
      if (limit << (second ? "100000 100000" : "100000") << std::flush) return;
      rmdir(path.c_str());
    }
    path.clear();
  }
  ~OneCoreGroup() { rmdir(path.c_str()); }
};

}  // namespace

TEST_CASE("every subcommand has help with examples") {
  const std::string help = tool("--help").output;
  for (const std::string name :
       {"env", "test", "estimate", "plan", "checkpoint show", "checkpoint verify", "checkpoint diff",
        "checkpoint convert", "checkpoint merge", "diff", "predict", "bench allreduce"}) {
    CAPTURE(name);
    const auto result = tool(name + " --help");
    CHECK(result.exit_code == 0);
    CHECK_THAT(result.output, ContainsSubstring("Examples:") && ContainsSubstring("tandem " + name));
    CHECK_THAT(help, ContainsSubstring("  " + name.substr(0, name.find(' '))));
  }
  CHECK(tool("").exit_code == 2);
  CHECK(tool("nonsense").exit_code == 2);
  CHECK(tool("checkpoint").exit_code == 2);
}

TEST_CASE("env shows the machine without a GPU, and what would be done") {
  const auto json = json_in(tool("env --json --cpu 3"));
  CHECK(json["GPU"]["usable"] == false);
  CHECK_THAT(json["GPU"]["why not"].get<std::string>(), ContainsSubstring("no NVIDIA driver"));
  CHECK(json["what Tandem would do"]["ranks"] == 3);
  CHECK(json["what Tandem would do"]["on"] == "CPU");
  CHECK(json["what Tandem would do"]["threads per rank"].get<int>() >= 1);
  CHECK(json["CPU"]["cores this process may use"].get<int>() >= json["CPU"]["physical cores of these"].get<int>());
  CHECK(json["memory"]["GB"].get<double>() > 0.1);
  const auto words = tool("env");
  CHECK(words.exit_code == 0);
  CHECK_THAT(words.output, ContainsSubstring("no NVIDIA driver") && ContainsSubstring("threads per rank"));
  CHECK(tool("env --cpu 2 --gpus 2").exit_code == 2);
}

TEST_CASE("env shows GPUs, how they are linked, and what would be done with them") {
  const auto json = json_in(tool_on_gpus("env --json"));
  CHECK(json["GPU"]["usable"] == true);
  REQUIRE(json["GPU"]["devices"].size() == 8);
  CHECK(json["GPU"]["devices"][0]["name"] == "fake");
  CHECK(json["GPU"]["CUDA of the driver"] == "13.0");
  CHECK(json["GPU"]["reach each other's memory"][0].size() == 7);
  CHECK(json["what Tandem would do"]["ranks"] == 8);
  CHECK_THAT(json["what Tandem would do"]["data between ranks goes through"].get<std::string>(),
             ContainsSubstring("NCCL"));
}

TEST_CASE("env names no home, user or host") {
  const TempDir dir;
  // A driver, but no module: the reason has paths in it.
  const std::string home = dir / "alice";
  write(home + "/lib/x", "");
  std::filesystem::copy_file(TANDEM_TOOL, home + "/tandem");
  std::filesystem::copy_file(TANDEM_FAKE_DRIVER, home + "/lib/libcuda.so.1");
  const auto result =
      run_program("HOME=" + home + " USER=alice LD_LIBRARY_PATH=" + home + "/lib " + home + "/tandem env --json");
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, !ContainsSubstring("alice"));
  CHECK_THAT(result.output, ContainsSubstring("why not"));
}

TEST_CASE("limits of control groups of either version are read, and those around count") {
  const TempDir dir;
  const std::string root = dir.path();
  write(root + "/proc/meminfo", "MemTotal:       8000000 kB\nMemAvailable:    4000000 kB");
  SECTION("version 2") {
    write(root + "/proc/self/cgroup", "0::/a/b");
    write(root + "/sys/fs/cgroup/a/b/cpu.max", "max 100000");
    write(root + "/sys/fs/cgroup/a/cpu.max", "150000 100000");
    write(root + "/sys/fs/cgroup/a/b/memory.max", "1000000000");
  }
  SECTION("version 1") {
    write(root + "/proc/self/cgroup", "3:cpu:/a\n2:memory:/a");
    write(root + "/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "150000");
    write(root + "/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000");
    write(root + "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1");
    write(root + "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
    write(root + "/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000000");
    write(root + "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  }
  const auto machine = apps::describe_machine(root);
  CHECK(machine.cpu_limit == 1.5);
  CHECK(machine.memory_limit == 1'000'000'000u);
  CHECK(machine.memory == 8'192'000'000u);
}

TEST_CASE("no limit of a control group is none") {
  const TempDir dir;
  write(dir.path() + "/proc/self/cgroup", "0::/");
  write(dir.path() + "/sys/fs/cgroup/cpu.max", "max 100000");
  write(dir.path() + "/sys/fs/cgroup/memory.max", "max");
  const auto machine = apps::describe_machine(dir.path());
  CHECK(!machine.cpu_limit);
  CHECK(!machine.memory_limit);
}

TEST_CASE("in a control group with one core's time there is one rank with one thread") {
  const OneCoreGroup group;
  if (group.path.empty()) {
    WARN("this process may make no control group");
    return;
  }
  const auto json = json_in(tool("env --json", "echo $$ > " + group.path + "/cgroup.procs &&"));
  CHECK(json["CPU"]["limit of the control group, cores"] == 1.0);
  CHECK(json["what Tandem would do"]["ranks"] == 1);
  CHECK(json["what Tandem would do"]["threads per rank"] == 1);
  CHECK(json["advice"].dump().find("control group") == std::string::npos);
  const auto two = json_in(tool("env --json --cpu 2", "echo $$ > " + group.path + "/cgroup.procs &&"));
  CHECK(two["what Tandem would do"]["ranks"] == 2);
  CHECK_THAT(two["advice"].dump(), ContainsSubstring("control group"));
}

TEST_CASE("the self-test passes on CPU ranks, part by part") {
  const auto result = tool("test --ranks 3");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  for (const char* part : {"collectives", "training", "dispatch", "checkpoint"})
    CHECK_THAT(result.output, ContainsSubstring(std::string("\n") + part));
  CHECK_THAT(result.output, ContainsSubstring("testing 3 CPU ranks") && ContainsSubstring("\npassed: "));
}

TEST_CASE("the self-test passes on fake GPUs") {
  const auto [ranks, parts] = GENERATE(table<std::string, std::size_t>({{"--gpus 2", 10}, {"--devices 1,1,2", 4}}));
  const auto result = tool_on_gpus("test --json " + ranks);
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  const auto json = json_in(result);
  CHECK(json["passed"] == true);
  REQUIRE(json["parts"].size() == parts);
  for (const auto& part : json["parts"]) CHECK(part["passed"] == true);
}

TEST_CASE("a self-test that cannot write reports the checkpoint, and the rest all the same") {
  const auto result = tool("test --ranks 2 --json", "TMPDIR=/proc");
  CHECK(result.exit_code == 1);
  const auto json = json_in(result);
  CHECK(json["passed"] == false);
  for (const auto& part : json["parts"]) CHECK(part["passed"] == (part["part"] != "checkpoint"));
}

TEST_CASE("sums that do not arrive at a GPU are found by the self-test") {
  const auto result =
      tool_on_gpus("test --devices 0,0 --transport peer-memory --json", "TANDEM_FAKE_GOOD_REDUCTIONS=20");
  CAPTURE(result.output);
  CHECK(result.exit_code == 1);
  const auto json = json_in(result);
  CHECK(json["parts"][0]["part"] == "collectives");
  CHECK(json["parts"][0]["passed"] == false);
  CHECK_THAT(json["parts"][0]["detail"].get<std::string>(), ContainsSubstring("gave a wrong result on rank 1"));
  CHECK(json["passed"] == false);
}

TEST_CASE("a self-test that hangs in a GPU ends, and says at which part") {
  const auto result = tool_on_gpus("test --devices 0,0 --transport peer-memory --timeout 2",
                                   "TANDEM_FAKE_GOOD_REDUCTIONS=20 TANDEM_FAKE_HANGS=1");
  CAPTURE(result.output);
  CHECK(result.exit_code == 1);
  CHECK_THAT(result.output, ContainsSubstring("collectives  FAILED") && ContainsSubstring("did not end within 2 s") &&
                                ContainsSubstring("\nFAILED"));
}
