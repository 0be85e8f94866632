// What the programs write, at all kinds of places: each stays what it is.
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <functional>
#include <thread>

#include <ATen/Functions.h>

#include "support/file_bytes.h"
#include "support/train_program.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/io/checkpoint_series.h"
#include "tandem/io/safetensors.h"

using namespace tandem;
using namespace tandem::test;
namespace fs = std::filesystem;

namespace {

const std::string kTrain = std::string(TANDEM_TRAIN) + " --cpu 1 --hidden 4 --limit-train-samples 100 --epochs 1 ";

bool is_weights(const std::string& path) {
  try {
    return !io::load_safetensors(path).empty();
  } catch (const CheckpointError&) {
    return false;
  }
}

bool is_page(const std::string& path) {
  const std::string page = bytes_of(path);
  return page.substr(0, page.find_last_not_of('\n') + 1).ends_with("</html>");
}

bool is_settings(const std::string& path) { return nlohmann::json::parse(bytes_of(path), nullptr, false).is_object(); }

// A flag that names an output: a command line with @ for the place, and whether a file is what it writes, and no more.
struct Output {
  std::string command;
  std::function<bool(const std::string& path)> whole;
  bool replaces = true;  // a file that is there
  bool talks = false;    // to the standard output, as it must
};

class Outputs {
 public:
  Outputs() {
    io::save_safetensors(dir_ / "model.safetensors", {{"a", at::ones({20'000})}});
    fs::create_directory(dir_ / "run");
    std::ofstream(dir_ / "run/log.jsonl") << R"({"event":"scalar","step":1,"time":1,"name":"loss","value":1})" << '\n';
    const std::string tool = TANDEM_TOOL;
    all_ = {{kTrain + "--save-weights @", is_weights},
            {tool + " checkpoint merge " + (dir_ / "model.safetensors") + " @", is_weights, false},
            {tool + " checkpoint convert " + (dir_ / "model.safetensors") + " @ --type bf16", is_weights, false},
            {tool + " report " + (dir_ / "run") + " -o @", is_page},
            {"yes '' | " + tool + " config --force @", is_settings, true, true}};
  }
  const std::vector<Output>& all() const { return all_; }

 private:
  TempDir dir_;
  std::vector<Output> all_;
};

std::string command_for(const Output& output, const std::string& place) {
  std::string command = output.command;
  return command.replace(command.find('@'), 1, place);
}

std::string quoted(const std::string& command) {
  std::string text;
  for (const char c : command) text += c == '\'' ? "'\\''" : std::string(1, c);
  return "'" + text + "'";
}

// Runs it in bash, with something before and behind.
ProgramResult run(const Output& output, const std::string& place, const std::string& rest = "",
                  const std::string& before = "") {
  return run_program("bash -c " + quoted(before + command_for(output, place) + rest));
}

void goes_to_files_and_links(const Output& output) {
  const TempDir dir;
  fs::create_directory(dir / "there");
  const std::string file = dir / "there/w.safetensors";
  fs::create_symlink(file, dir / "link.safetensors");
  for (const std::string& path : {file, dir / "link.safetensors"}) {
    auto result = run(output, path);
    CAPTURE(path, result.output);
    CHECK(result.exit_code == 0);
    CHECK(output.whole(file));  // what was a dangling link leads to it
    std::ofstream(file) << "old";
    result = run(output, path);
    CHECK(result.exit_code == (output.replaces ? 0 : 2));
    CHECK(output.whole(file) == output.replaces);
    CHECK(std::distance(fs::directory_iterator(dir / "there"), fs::directory_iterator()) == 1);
    CHECK(fs::is_symlink(dir / "link.safetensors"));
    fs::remove(file);
  }
}

void goes_to_streams(const Output& output) {
  const TempDir dir;
  const std::string got = dir / "got";
  const auto gives = [&](const ProgramResult& result) {
    for (int tries = 0; tries < 200 && !output.whole(got); ++tries)  // the reader may take longer
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CAPTURE(result.output);
    CHECK(result.exit_code == 0);
    CHECK(output.whole(got));
    fs::remove(got);
  };
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  gives(run(output, dir / "fifo", "", "cat " + (dir / "fifo") + " >" + got + " & "));
  CHECK(fs::is_fifo(dir / "fifo"));
  gives(run(output, ">(cat >" + got + ")"));
  if (!output.talks) {
    gives(run(output, "/dev/stdout", " >" + got));
    gives(run(output, "/dev/stdout", " | cat >" + got));
  }
  gives(run(output, "/proc/self/fd/5", " 5>" + got));
  for (const char* device : {"/dev/null", "/dev/zero"}) {
    CHECK(run(output, device).exit_code == 0);
    CHECK(fs::is_character_file(device));
  }
  const auto full = run(output, "/dev/full");
  CHECK(full.exit_code == 1);
  CHECK_THAT(full.output, ContainsSubstring("No space left on device"));
  CHECK(fs::is_character_file("/dev/full"));
}

void says_what_is_wrong(const Output& output) {
  const TempDir dir;
  const auto missing = run(output, dir / "none/w.safetensors");
  CHECK((missing.exit_code == 1 || missing.exit_code == 2));
  CHECK_THAT(missing.output, ContainsSubstring("none' does not exist"));
  const auto closed = run(output, "/dev/fd/77");
  CHECK((closed.exit_code == 1 || closed.exit_code == 2));
  CHECK_THAT(closed.output, ContainsSubstring("descriptor 77 is not open"));
  const auto on_disk = [&](const std::string& size, const std::string& also) {
    return run_program("unshare -m bash -c " +
                       quoted("mount -t tmpfs -o size=" + size + " none " + dir.path() + " || exit 77; " + also));
  };
  if (on_disk("8k", "true").exit_code != 0) {
    WARN("nothing can be mounted here: full and read-only disks were not tested");
    return;
  }
  const std::string command = command_for(output, dir / "w.safetensors");
  // Settings are smaller than any disk.
  const auto full = on_disk("4k", "cat /dev/zero >" + (dir / "other") + " 2>/dev/null; " + command + "; code=$?; ls " +
                                      dir.path() + "; exit $code");
  CHECK(full.exit_code == 1);
  CHECK_THAT(full.output, ContainsSubstring("No space left on device") && !ContainsSubstring("w.safetensors.tmp"));
  const auto closed_disk = on_disk("8k,ro", command);
  CHECK((closed_disk.exit_code == 1 || closed_disk.exit_code == 2));
  CHECK_THAT(closed_disk.output, ContainsSubstring("Read-only file system"));
}

// A training that lasts, until it is ended.
class Training {
 public:
  explicit Training(const std::string& arguments) : pid_(fork()) {
    if (pid_ != 0) return;
    const std::string line = "exec " + std::string(TANDEM_TRAIN) +
                             " --cpu 1 --hidden 4 --limit-train-samples 1000 --epochs 1000000 --quiet " + arguments;
    execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
    _exit(99);
  }
  ~Training() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Training(const Training&) = delete;
  Training& operator=(const Training&) = delete;
  pid_t pid() const { return pid_; }

 private:
  const pid_t pid_;
};

}  // namespace

TEST_CASE("every output of the programs stays what it is, at every place", "[.long-outputs]") {
  const Outputs outputs;
  for (const Output& output : outputs.all()) {
    CAPTURE(output.command);
    goes_to_files_and_links(output);
    goes_to_streams(output);
    says_what_is_wrong(output);
  }
}

TEST_CASE("one file of weights goes to files, links, devices, pipes and the standard output") {
  const Outputs outputs;
  const Output& merge = outputs.all()[1];
  goes_to_files_and_links(merge);
  goes_to_streams(merge);
  says_what_is_wrong(merge);
}

TEST_CASE("train saves weights to the standard output and nothing else, and leaves devices as they are") {
  const TempDir dir;
  const auto result = run_program("(" + kTrain + "--save-weights /dev/stdout | cat >" + (dir / "w") + ")");
  CAPTURE(result.output);
  CHECK(is_weights(dir / "w"));
  CHECK_THAT(result.output, ContainsSubstring("training mlp on 1 CPU rank") && ContainsSubstring("test accuracy"));
  fs::create_symlink("/dev/null", dir / "link");
  CHECK(run_program(kTrain + "--save-weights " + (dir / "link")).exit_code == 0);
  CHECK(fs::is_symlink(dir / "link"));
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("waiting for a FIFO's reader, train can be stopped") {
  const TempDir dir;
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  const auto result =
      run_program("timeout --foreground -k 20 3 " + kTrain + "--save-weights " + (dir / "fifo") + "; echo code $?");
  // 124 is timeout's own for a program that it has ended; 137 says that SIGKILL was needed.
  CHECK_THAT(result.output, ContainsSubstring("code 124"));
  CHECK(fs::is_fifo(dir / "fifo"));
}

TEST_CASE("folders of checkpoints, profiles and runs are made where links lead") {
  const TempDir dir;
  for (const char* name : {"c", "r", "p"}) fs::create_symlink("there/" + std::string(name), dir / name);
  const auto result =
      run_program(kTrain + "--quiet --checkpoint-dir " + (dir / "c") + " --log-with jsonl --project-dir " +
                  (dir / "r") + " --profile " + (dir / "p") + " --profile-steps 1:1");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK(io::list_checkpoints(dir / "there/c").size() == 1);
  CHECK(fs::exists(dir / "there/r/log.jsonl"));
  CHECK(fs::exists(dir / "there/p/trace.json"));
  CHECK(std::distance(fs::directory_iterator(dir / "there/p"), fs::directory_iterator()) == 1);
  for (const char* name : {"c", "r", "p"}) CHECK(fs::is_symlink(dir / name));
}

TEST_CASE("a second train on a folder of checkpoints is refused while the first lives") {
  const TempDir dir;
  const std::string flags = "--save-every 5 --checkpoint-dir " + (dir / "c");
  {
    const Training first(flags);
    while (io::list_checkpoints(dir / "c").empty()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    for (const char* resume : {"", " --resume auto"}) {
      const auto second = run_program(kTrain + flags + resume);
      CHECK(second.exit_code == 2);
      CHECK_THAT(second.output, ContainsSubstring("--checkpoint-dir: " + (dir / "c") + ": process " +
                                                  std::to_string(first.pid()) + " on ") &&
                                    ContainsSubstring(", since ") && ContainsSubstring("name another directory"));
    }
    // Looking is free.
    const std::string newest = io::list_checkpoints(dir / "c").back();
    CHECK(run_program(std::string(TANDEM_TOOL) + " checkpoint verify " + newest).exit_code == 0);
  }  // killed
  const auto before = io::list_checkpoints(dir / "c");
  const auto second = run_program(kTrain + flags + " --quiet");
  CAPTURE(second.output);
  CHECK(second.exit_code == 0);
  const auto after = io::list_checkpoints(dir / "c");
  REQUIRE(after.size() > before.size());
  CHECK(std::vector<std::string>(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(before.size())) == before);
  for (const std::string& path : after) io::CheckpointReader(path).verify();
}

TEST_CASE("on a file system that cannot sync directories train saves all, and on one that fails it says so") {
  const TempDir dir;
  const auto train_with = [&](int error) {
    return run_program("LD_PRELOAD=" + std::string(TANDEM_NO_DIRECTORY_SYNC) +
                       " TANDEM_TEST_SYNC_ERROR=" + std::to_string(error) + " " + kTrain + "--quiet --checkpoint-dir " +
                       (dir / "c") + " --save-weights " + (dir / "w"));
  };
  std::size_t saved = 0;
  for (const int error : {EINVAL, ENOTSUP}) {
    const auto result = train_with(error);
    CAPTURE(error, result.output);
    CHECK(result.exit_code == 0);
    CHECK(io::list_checkpoints(dir / "c").size() == ++saved);
    CHECK(is_weights(dir / "w"));
  }
  const auto result = train_with(EIO);
  CHECK(result.exit_code == 1);
  CHECK_THAT(result.output, ContainsSubstring("Input/output error"));
}
