// What train shows while it trains, in a terminal and elsewhere.
#include "train/progress.h"

#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "support/catch.h"
#include "support/train_program.h"
#include "train/metrics.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// Runs train with a terminal of so many columns, and returns what it shows there.
std::string in_terminal(const std::string& arguments, unsigned short columns) {
  int terminal = -1;
  winsize size{.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
  const pid_t child = forkpty(&terminal, nullptr, nullptr, &size);
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", (std::string("exec ") + TANDEM_TRAIN + " " + arguments).c_str(), nullptr);
    _exit(99);
  }
  std::string shown;
  std::array<char, 4096> part;
  // Reading fails when the child has closed its side.
  for (ssize_t got; (got = read(terminal, part.data(), part.size())) > 0;)
    shown.append(part.data(), static_cast<std::size_t>(got));
  close(terminal);
  int status = 0;
  waitpid(child, &status, 0);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  return shown;
}

const std::string kTraining = "--cpu 2 --hidden 16 --limit-train-samples 4000 --epochs 1 ";

}  // namespace

TEST_CASE("the pace follows changes, and begins with what is measured first") {
  train::Pace pace;
  CHECK(pace.samples_per_second() == 0);
  CHECK(pace.seconds_per_step() == 0);
  pace.add(0.1, 2, 100, 0.05);
  CHECK(pace.samples_per_second() == Approx(1000));
  CHECK(pace.seconds_per_step() == Approx(0.05));
  CHECK(pace.data_wait() == Approx(0.5));
  pace.add(0.1, 1, 50, 0);  // a hiccup changes little …
  CHECK(pace.samples_per_second() < 800);
  CHECK(pace.samples_per_second() > 700);
  for (int i = 0; i < 300; ++i) pace.add(0.1, 1, 50, 0);  // … and what goes on is believed
  CHECK(pace.samples_per_second() == Approx(500).epsilon(0.01));
  CHECK(pace.data_wait() < 0.001);
}

TEST_CASE("the line has the time left, and tells of waits for data that matter") {
  const auto line = [](double seconds_per_step, double data_wait) {
    train::Pace pace;
    pace.add(seconds_per_step, 1, 64, data_wait * seconds_per_step);
    return train::progress_line(pace, 0, 100, 600, 0.25);
  };
  CHECK(line(0.01, 0.04) == "epoch 1  step 100/600  loss 0.2500  6400 samples/s  5 s left");
  CHECK_THAT(line(0.01, 0.06), ContainsSubstring("5 s left  waits for data 6 % of the time"));
  CHECK_THAT(line(1, 0), ContainsSubstring("  8 min left"));
  CHECK_THAT(line(60, 0), ContainsSubstring("  8 h 20 min left"));
}

TEST_CASE("in a terminal there is one live line, no wider than it, which goes before the results come") {
  const std::string shown = in_terminal(kTraining, 40);
  const std::string start = "\r\033[K";
  const std::size_t first = shown.find(start + "epoch 1  step 1/32  loss ");
  REQUIRE(first != std::string::npos);
  const std::size_t results = shown.find(start + "test accuracy");
  REQUIRE(results != std::string::npos);
  CHECK(shown.find('\n', first) > results);
  for (std::size_t at = first; at < results;) {
    const std::size_t next = shown.find(start, at + start.size());
    CHECK(next - at - start.size() < 40);
    at = next;
  }
  CHECK_THAT(in_terminal(kTraining, 200), ContainsSubstring(" samples/s  ") && ContainsSubstring(" s left"));
}

TEST_CASE("elsewhere there are plain lines, and none when they are not wanted") {
  const std::string shown = test::run_train(kTraining).output;
  CHECK_THAT(shown, ContainsSubstring("\nepoch 1  step 1/32  loss ") && ContainsSubstring(" left"));
  CHECK(shown.find('\r') == std::string::npos);
  CHECK(test::run_train(kTraining + "--no-progress").output.find("step 1/") == std::string::npos);
  CHECK(in_terminal(kTraining + "--quiet", 80).empty());
}

TEST_CASE("time that passes while training is paused does not count, however often it is paused") {
  train::Throughput throughput;
  throughput.start();
  throughput.pause();
  const double seconds = throughput.train_seconds();
  const auto later = [](auto since) {
    while (train::Clock::now() == since) {
    }
  };
  later(train::Clock::now());
  throughput.pause();
  CHECK(throughput.train_seconds() == seconds);
  throughput.resume();
  later(train::Clock::now());
  throughput.pause();
  CHECK(throughput.train_seconds() > seconds);
}
