// Several writers in one folder: none loses what another has finished.
#include "tandem/io/checkpoint_series.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "support/catch.h"
#include "support/child.h"
#include "support/error_of.h"
#include "support/failing_calls.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_directory.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;
namespace fs = std::filesystem;

namespace {

// As save_state does it.
std::string save(CheckpointSeries& series, const std::string& text, std::optional<std::int64_t> limit = {}) {
  const std::string path = series.next();
  CheckpointWriter writer(path, Existing::keep);
  writer.add("text", text);
  writer.commit();
  series.finish(path, limit);
  return path;
}

void wait_for(const std::string& path) {
  while (!fs::exists(path)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const std::string& path : list_checkpoints(directory)) names.push_back(fs::path(path).filename().string());
  return names;
}

// What a process says it has finished: lines of a checkpoint and the text in it.
std::map<std::string, std::string> finished(const std::string& log) {
  std::map<std::string, std::string> all;
  std::ifstream file(log);
  for (std::string path, text; file >> path >> text;) all[path] = text;
  return all;
}

}  // namespace

TEST_CASE("one at a time writes into a folder, and others are told who and since when") {
  const TempDir dir;
  const std::string folder = dir / GENERATE("new/folder", "folder/");
  {
    CheckpointSeries first(folder);
    CHECK(save(first, "first") == folder + "/checkpoint_0");
    const auto second = [&] { return error_of<CheckpointError>([&] { CheckpointSeries series(folder); }); };
    const std::string me = "process " + std::to_string(::getpid()) + " on ";
    CHECK_THAT(second(), ContainsSubstring(folder + ": " + me) && ContainsSubstring(", since 2") &&
                             ContainsSubstring("UTC (this process itself) writes checkpoints there"));
    CHECK(end_of(start_child([&] {
            const std::string said = second();
            if (said.find(me) == std::string::npos || said.find("itself") != std::string::npos)
              throw std::logic_error(said);
          })) == 0);
    CHECK(list_checkpoints(folder).size() == 1);  // looking is free
    CHECK(save(first, "more") == folder + "/checkpoint_1");
  }
  CheckpointSeries next(folder);
  CHECK(save(next, "next") == folder + "/checkpoint_2");
  fs::create_directory_symlink(folder, dir / "link");
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointSeries series(dir / "link"); }), ContainsSubstring("itself"));
}

TEST_CASE("a process that was killed keeps nobody out") {
  const TempDir dir;
  for (int i = 0; i < 3; ++i) {
    const pid_t child = start_child([&] {
      CheckpointSeries series(dir.path());
      save(series, "text");
      std::ofstream(dir / "ready" + std::to_string(i));
      for (;;) pause();
    });
    wait_for(dir / "ready" + std::to_string(i));
    CHECK_THAT(error_of<CheckpointError>([&] { CheckpointSeries series(dir.path()); }),
               ContainsSubstring("process " + std::to_string(child) + " on "));
    kill(child, SIGKILL);
    CHECK(end_of(child) == 128 + SIGKILL);
  }
  {
    CheckpointSeries series(dir.path());
    CHECK(save(series, "text", 2) == dir / "checkpoint_3");
  }
  CHECK(names_in(dir.path()) == std::vector<std::string>{"checkpoint_2", "checkpoint_3"});
  CHECK_FALSE(fs::exists(dir / ".tandem-lock"));
}

TEST_CASE("a limit is for what was there at the beginning and what the series itself has written") {
  const TempDir dir;
  const bool locks = GENERATE(true, false);
  const auto begin = [&] {
    const FailingCall failing("flock", locks ? 1000 : kEach, ENOLCK);
    return std::make_unique<CheckpointSeries>(dir.path());
  };
  auto before = begin();
  save(*before, "before");
  before.reset();
  auto series = begin();
  save(*series, "own", 3);
  {
    CheckpointWriter writer(dir / "checkpoint_2");  // such as a copy that somebody makes
    writer.commit();
  }
  for (int i = 0; i < 3; ++i) save(*series, "own", 2);
  if (locks)
    CHECK(names_in(dir.path()) == std::vector<std::string>{"checkpoint_2", "checkpoint_4", "checkpoint_5"});
  else  // whose the first is nobody knows
    CHECK(names_in(dir.path()) ==
          std::vector<std::string>{"checkpoint_0", "checkpoint_2", "checkpoint_4", "checkpoint_5"});
  CHECK(fs::read_symlink(dir / "latest") == "checkpoint_5");
}

TEST_CASE("a number that somebody else has taken meanwhile stays his") {
  const TempDir dir;
  CheckpointSeries series(dir.path());
  const std::string path = series.next();
  CheckpointWriter late(path, Existing::keep);
  {
    CheckpointWriter writer(path);
    writer.add("text", "his");
    writer.commit();
  }
  CHECK_THAT(error_of<CheckpointError>([&] { late.commit(); }), ContainsSubstring("has been written meanwhile"));
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointWriter(path, Existing::keep); }),
             ContainsSubstring("is there already, and stays"));
  CHECK(CheckpointReader(path).read("text") == "his");
  CHECK(save(series, "mine") == dir / "checkpoint_1");
}

TEST_CASE("three processes on one folder, with locks and without, lose none of a hundred finished checkpoints") {
  const TempDir dir;
  const int error = GENERATE(0, ENOLCK, ENOTSUP);  // why there are no locks
  CAPTURE(error);
  const std::string folder = dir / "c";
  std::vector<pid_t> children;
  for (int child = 0; child < 3; ++child)
    children.push_back(start_child([&, child] {
      std::ofstream log(dir / std::to_string(child));
      const FailingCall failing("flock", error ? kEach : 1'000'000, error);
      for (int i = 0; i < 34;) {
        std::unique_ptr<CheckpointSeries> series;
        const std::string refused =
            error_of<CheckpointError>([&] { series = std::make_unique<CheckpointSeries>(folder); });
        if (!series && (error != 0 || refused.find("process ") == std::string::npos)) throw std::logic_error(refused);
        // Locked, a process takes its turn for some.
        for (int turn = 0; series && turn < 5 && i < 34; ++turn, ++i) {
          const std::string text = std::to_string(child) + "-" + std::to_string(i);
          log << save(*series, text) << ' ' << text << std::endl;
        }
        series.reset();
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }));
  for (const pid_t child : children) CHECK(end_of(child) == 0);
  std::size_t all = 0;
  for (int child = 0; child < 3; ++child)
    for (const auto& [path, text] : finished(dir / std::to_string(child))) {
      all += 1;
      REQUIRE(fs::exists(path));
      REQUIRE(CheckpointReader(path).read("text") == text);
    }
  CHECK(all == 102);
  CHECK(list_checkpoints(folder).size() == 102);
  for (const auto& entry : fs::directory_iterator(folder))
    CHECK_FALSE(entry.path().filename().string().starts_with(".tandem-saving"));
}

TEST_CASE("killed at any moment, a process on a shared folder loses nothing that is finished", "[.long-series]") {
  const TempDir dir;
  const bool locks = GENERATE(true, false);
  const std::string folder = dir / "c";
  const auto check_finished = [&] {
    std::size_t all = 0;
    for (int child = 0; child < 3; ++child)
      for (const auto& [path, text] : finished(dir / std::to_string(child))) {
        all += 1;
        REQUIRE(CheckpointReader(path).read("text") == text);
      }
    return all;
  };
  int kills = 0;
  for (int round = 0; kills < 100 || check_finished() < 50; ++round) {  // a busy disk saves less between two kills
    std::vector<pid_t> children;
    for (int child = 0; child < 3; ++child)
      children.push_back(start_child([&, child] {
        std::ofstream log(dir / std::to_string(child), std::ios::app);
        const FailingCall failing("flock", locks ? 1'000'000 : kEach, ENOLCK);
        std::unique_ptr<CheckpointSeries> series;
        while (!series) error_of<CheckpointError>([&] { series = std::make_unique<CheckpointSeries>(folder); });
        for (int i = 0;; ++i) {
          const std::string text = std::to_string(round) + "-" + std::to_string(child) + "-" + std::to_string(i);
          log << save(*series, text) + ' ' + text + '\n' << std::flush;
        }
      }));
    for (const pid_t child : children) {
      std::this_thread::sleep_for(std::chrono::microseconds(3'000 + 1'931 * (round % 7) + 500 * round));
      kill(child, SIGKILL);
      CHECK(end_of(child) == 128 + SIGKILL);
      kills += 1;
    }
  }
}
