// train --profile, and what tools see that attach themselves to train.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "support/catch.h"
#include "support/run_program.h"
#include "support/temp_dir.h"
#include "support/trace_file.h"

using namespace tandem::test;

namespace {

const std::string kProfiledRun =
    std::string(TANDEM_TRAIN) + " --hidden 16 --limit-train-samples 400 --batch-size 10 --max-steps 12 --no-progress ";

}  // namespace

TEST_CASE("train --profile writes a trace of all ranks and says where the time goes") {
  TempDir dir;
  const int ranks = GENERATE(1, 2, 4);
  const auto result = run_program(kProfiledRun + "--cpu " + std::to_string(ranks) +
                                  " --epochs 2 --eval-every 0 --profile " + dir / "p/q" + " --profile-steps 8:11");
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("data wait"));
  CHECK_THAT(result.output, ContainsSubstring(dir / "p/q/trace.json"));
  // What train says, the table, and nothing of LibTorch's.
  CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 4 + ranks);
  const auto threads = read_trace(dir / "p/q/trace.json");
  REQUIRE(threads.size() == static_cast<std::size_t>(ranks));
  for (const TracedThread& thread : threads) {
    std::vector<std::string> steps;
    for (const auto& step : thread.all("micro-batch")) steps.push_back(step.name);
    CHECK(steps == std::vector<std::string>{"micro-batch of step 8", "micro-batch of step 9", "micro-batch of step 10",
                                            "micro-batch of step 11"});
    for (const char* name : {"forward", "backward", "optimizer"}) CHECK(thread.all(name).size() == 4);
  }
}

TEST_CASE("a profile changes nothing about the training") {
  TempDir dir;
  const std::string train = kProfiledRun + "--cpu 2 --quiet --save-weights ";
  REQUIRE(run_program(train + dir / "plain").output.empty());
  REQUIRE(run_program(train + dir / "profiled --profile " + dir / "p --profile-steps 2:9").output.empty());
  CHECK(run_program("cmp " + dir / "plain " + dir / "profiled").exit_code == 0);
}

namespace {

// Of the scripts. (The variable is not there when CTest only asks for the names of the tests.)
std::string profiles() { return std::string(std::getenv("TANDEM_SOURCE_DIR")) + "/profiles"; }

// A tool that notes how it is called, runs the program it is given, and writes the report it is asked for.
void write_fake_tool(const std::string& path, const std::string& extension) {
  std::ofstream(path) << "#!/bin/bash\n"
                         "printf '%s\\n' \"$*\" \"steps $TANDEM_NVTX_STEPS\" >>\"$CALLS\"\n"
                         "for argument; do\n"
                         "  case $argument in\n"
                         "    --output=*|--export=*) touch \"${argument#*=}" +
                             extension +
                             "\" ;;\n"
                             "  esac\n"
                             "done\n";
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("the profile scripts call their tools with their options, and then print a summary") {
  TempDir dir;
  write_fake_tool(dir / "nsys", ".nsys-rep");
  write_fake_tool(dir / "ncu", ".ncu-rep");
  const std::string environment = "CALLS=" + dir / "calls PATH=" + dir.path() + ":$PATH TANDEM_PROFILE=" + dir / "r ";
  auto result = run_program(environment + profiles() + "/profile-nsys.sh ./program --gpus 8");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  std::string calls = read_file(dir / "calls");
  CHECK_THAT(calls, ContainsSubstring("profile --command-file=" + profiles() + "/nsys.options --output=" + dir / "r" +
                                      " ./program --gpus 8\nsteps 20:40"));
  CHECK_THAT(calls, ContainsSubstring("stats --force-export=true"));
  CHECK_THAT(calls, ContainsSubstring("analyze --rule=gpu_gaps"));
  result = run_program("TANDEM_NVTX_STEPS=1:2 " + environment + profiles() + "/profile-ncu.sh ./program");
  CHECK(result.exit_code == 0);
  calls = read_file(dir / "calls");
  CHECK_THAT(calls, ContainsSubstring("--nvtx-exclude=tandem@collective/"));
  CHECK_THAT(calls, ContainsSubstring("--export=" + dir / "r ./program\nsteps 1:2"));
}

TEST_CASE("the profile scripts say what is missing or wrong") {
  TempDir dir;
  std::filesystem::create_symlink("/usr/bin/dirname", dir / "dirname");
  const std::string no_tools = "PATH=" + dir.path() + " /bin/bash ";
  const struct {
    std::string command;
    int code;
    std::string words;
  } cases[] = {{no_tools + profiles() + "/profile-nsys.sh ./train", 1, "nsys is not installed"},
               {no_tools + profiles() + "/profile-ncu.sh ./train", 1, "ncu is not installed"},
               {profiles() + "/profile-nsys.sh", 2, "build/apps/train --gpus 8"},
               {"TANDEM_NVTX_STEPS=x " + profiles() + "/profile-nsys.sh ./train", 2, "use FIRST:LAST"}};
  for (const auto& c : cases) {
    const auto result = run_program(c.command);
    CAPTURE(c.command, result.output);
    CHECK(result.exit_code == c.code);
    CHECK_THAT(result.output, ContainsSubstring(c.words));
  }
}

TEST_CASE("the check of option files finds what nsys stumbles over without saying so") {
  TempDir dir;
  const auto check = [&](const std::string& nsys, const std::string& environment = "") {
    std::filesystem::copy(profiles() + "/ncu.options", dir / "ncu.options",
                          std::filesystem::copy_options::overwrite_existing);
    std::ofstream(dir / "nsys.options") << nsys;
    std::ofstream(dir / "script.sh") << "true\n";
    return run_program(environment + profiles() + "/check.sh " + dir.path());
  };
  CHECK(check("--sample=none\n--trace=cuda,nvtx").exit_code == 0);
  for (const char* wrong : {"# comment\n", "--sample=none\n\n--trace=nvtx\n", "--sample none\n", "-s none\n",
                            "sample\n", "--sample=none \n", "--sample=none # why\n", "--sample=\n", ""}) {
    const auto result = check(wrong);
    CAPTURE(wrong, result.output);
    CHECK(result.exit_code == 1);
    CHECK_THAT(result.output, ContainsSubstring("nsys.options"));
  }
  // A tool that is there is asked.
  std::ofstream(dir / "nsys") << "#!/bin/bash\necho '  --trace=  what to trace  --sampler= no'\n";
  std::filesystem::permissions(dir / "nsys", std::filesystem::perms::owner_all);
  const auto result = check("--trace=nvtx\n--sample=none\n", "PATH=" + dir.path() + ":$PATH ");
  CHECK(result.exit_code == 1);
  CHECK_THAT(result.output, ContainsSubstring("nsys does not know --sample"));
  CHECK_THAT(result.output, !ContainsSubstring("--trace"));
}

#ifdef TANDEM_NVTX_TOOL

namespace {

struct Pushed {
  std::string name, kind;
  std::int64_t rank, step, bucket, bytes;
};

struct Seen {
  std::map<int, std::string> names;           // of threads
  std::map<int, std::vector<Pushed>> pushes;  // by thread
  std::map<int, int> open;                    // ranges that were not ended
  std::vector<std::string> process_wide;
};

Seen read_tool(const std::string& path) {
  Seen seen;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string what, rest;
    int thread = 0;
    words >> what;
    if (what == "start" || what == "end") {
      seen.process_wide.push_back(line);
      continue;
    }
    words >> thread;
    if (what == "thread") {
      std::getline(words >> std::ws, seen.names[thread]);
    } else if (what == "pop") {
      seen.open[thread] -= 1;
    } else {
      Pushed pushed;
      words >> pushed.name;
      std::getline(words >> std::ws, pushed.kind, '|');
      words >> pushed.rank >> pushed.step >> pushed.bucket >> pushed.bytes;
      seen.pushes[thread].push_back(pushed);
      seen.open[thread] += 1;
    }
  }
  return seen;
}

}  // namespace

TEST_CASE("an NVTX tool sees named threads, ranges with their kind, rank, step and bucket, and the steps asked for") {
  TempDir dir;
  const auto result =
      run_program("TANDEM_NVTX_STEPS=3:5 NVTX_INJECTION64_PATH=" TANDEM_NVTX_TOOL " NVTX_TOOL_OUTPUT=" + dir / "seen " +
                  kProfiledRun + "--cpu 3 --quiet");
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  Seen seen = read_tool(dir / "seen");
  CHECK(seen.process_wide == std::vector<std::string>{"start profile", "end"});
  REQUIRE(seen.names.size() == 3);
  REQUIRE(seen.pushes.size() == 3);
  for (const auto& [thread, pushes] : seen.pushes) {
    CHECK(seen.names[thread] == "rank " + std::to_string(pushes.front().rank));
    CHECK(seen.open[thread] == 0);
    std::map<std::string, std::vector<Pushed>> by_name;
    for (const Pushed& pushed : pushes) {
      CHECK(pushed.rank == pushes.front().rank);
      by_name[pushed.name].push_back(pushed);
    }
    const auto& steps = by_name["micro-batch"];
    REQUIRE(steps.size() == 12);
    for (std::size_t i = 0; i < steps.size(); ++i) CHECK(steps[i].step == static_cast<std::int64_t>(i + 1));
    CHECK(by_name["optimizer"].size() == 12);
    CHECK(by_name["optimizer"].front().kind == "optimizer");
    CHECK(by_name["forward"].front().kind == "forward");
    CHECK(by_name["data-wait"].front().kind == "data wait");
    REQUIRE_FALSE(by_name["all-reduce"].empty());
    CHECK(by_name["all-reduce"].front().kind == "communication");
    CHECK(by_name["all-reduce"].front().bucket == 0);
    CHECK(by_name["all-reduce"].front().bytes > 0);
  }
}

#endif
