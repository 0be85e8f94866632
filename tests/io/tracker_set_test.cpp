// What holds for trackers of each format, and what happens when one cannot write.
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <locale>
#include <thread>

#include <ATen/Functions.h>

#include "io/tracker_files.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;

namespace {

// Fails from the `nth` log on.
class FailingTracker : public Tracker {
 public:
  FailingTracker(int nth, int& calls) : nth_(nth), calls_(calls) {}
  std::string name() const override { return "mine"; }
  void log(std::span<const Scalar>, Moment) override {
    if (++calls_ >= nth_) throw std::runtime_error("the service is gone");
  }

 private:
  const int nth_;
  int& calls_;
};

}  // namespace

TEST_CASE("names and texts of any bytes are recorded") {
  const TempDir dir;
  TrackerSet trackers(true, [](const std::string& warning) { FAIL(warning); });
  add_all(trackers, dir.path());
  const std::string odd = "ü/\"\\\n\x1f,|\xff";
  trackers.begin({.name = odd, .config = {{odd, odd}}});
  trackers.log({{odd, 1}, {"", 2}}, 1);
  trackers.log_text(odd, odd, 1);
  trackers.log_matrix(odd, {{odd}, {{1}}}, 1);
  trackers.log_images(odd, at::zeros({1, 1, 1, 1}), 1, {odd});
  trackers.log_event(odd, odd, 1);
  trackers.finish(RunStatus::finished, {{odd, 1}});
  const std::string replaced = "ü/\"\\\n\x1f,|\xef\xbf\xbd";
  const auto lines = json_lines_of(dir / "log.jsonl");
  REQUIRE(lines.size() == 7);
  CHECK(lines[0]["name"] == replaced);
  CHECK(lines[1]["values"] == Json{{replaced, 1.0}, {"", 2.0}});
  CHECK(lines[2]["text"] == replaced);
  CHECK(fs::exists(dir / lines[4]["files"][0].get<std::string>()));
  CHECK(records_of(event_file_in(dir.path())).size() == 10);
}

TEST_CASE("many lines are all there") {
  const TempDir dir;
  TrackerSet trackers(true);
  add_all(trackers, dir.path());
  trackers.begin({.name = "r"});
  constexpr int kLines = 50'000;
  for (int i = 0; i < kLines; ++i) trackers.log({{"loss", i / 7.0}}, i);
  trackers.finish(RunStatus::finished);
  const auto lines = lines_of(dir / "log.jsonl");
  REQUIRE(lines.size() == kLines + 2);
  CHECK(Json::parse(lines[kLines])["values"]["loss"] == (kLines - 1) / 7.0);
  CHECK(lines_of(dir / "scalars.csv").size() == kLines + 1);
  CHECK(records_of(event_file_in(dir.path())).size() == kLines + 4);
}

TEST_CASE("numbers have a point where the locale has a comma") {
  struct Comma : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
  };
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Comma));
  // The C library's locale too, where the machine can make one.
  const TempDir locales, dir;
  const std::string make = "localedef -i de_DE -f UTF-8 " + (locales / "de_DE.UTF-8") + " >/dev/null 2>&1";
  setenv("LOCPATH", locales.path().c_str(), 1);
  const bool made = std::system(make.c_str()) == 0 && setlocale(LC_ALL, "de_DE.UTF-8") != nullptr;
  unsetenv("LOCPATH");
  char text[8];
  std::snprintf(text, sizeof text, "%.1f", 1.5);
  const std::string shown = text;
  {
    TrackerSet trackers(true);
    add_all(trackers, dir.path());
    trackers.begin({.name = "r", .config = {{"lr", 0.5}}});
    trackers.log({{"loss", 1234567.25}}, 1234567);
    trackers.log_matrix("m", {{"a"}, {{0.5}}}, 1);
    trackers.finish(RunStatus::finished);
  }
  setlocale(LC_ALL, "C");
  std::locale::global(before);
  CAPTURE(made);
  if (made) CHECK(shown == "1,5");
  CHECK(json_lines_of(dir / "log.jsonl")[1]["values"]["loss"] == 1234567.25);
  const std::string line = lines_of(dir / "scalars.csv")[1];
  CHECK(std::count(line.begin(), line.end(), ',') == 3);
  CHECK_THAT(line, ContainsSubstring("1234567,") && ContainsSubstring("loss,1234567.25"));
  CHECK_THAT(bytes_of(event_file_in(dir.path())), ContainsSubstring("| 0.5 |"));
}

TEST_CASE("a tracker that fails is told of once, and the others go on") {
  const TempDir dir;
  std::vector<std::string> warnings;
  int calls = 0;
  TrackerSet trackers(true, [&](const std::string& warning) { warnings.push_back(warning); });
  trackers.add(std::make_unique<FailingTracker>(3, calls));
  trackers.add(json_lines_tracker(dir.path()));
  trackers.begin({.name = "r"});
  for (int step = 1; step <= 9; ++step) trackers.log({{"loss", 1}}, step);
  CHECK(trackers.recording());
  trackers.finish(RunStatus::finished);
  CHECK(calls == 3);
  CHECK(warnings == std::vector<std::string>{"tracker 'mine' failed and is left out from now on: the service is gone"});
  CHECK(lines_of(dir / "log.jsonl").size() == 11);
}

TEST_CASE("a full disk, a directory that cannot be made and files that vanish are told once") {
  const TempDir dir;
  struct Case {
    std::string file;  // that is not writable
    std::unique_ptr<Tracker> (*make)(const std::string&);
  };
  const auto c = GENERATE(Case{"log.jsonl", json_lines_tracker}, Case{"scalars.csv", csv_tracker});
  std::vector<std::string> warnings;
  TrackerSet trackers(true, [&](const std::string& warning) { warnings.push_back(warning); });
  trackers.add(c.make(dir / "other"));
  const auto log_some = [&] {
    trackers.begin({.name = "r"});
    for (int step = 1; step <= 3; ++step) trackers.log({{"loss", 1}}, step);
  };
  const auto check = [&](const std::string& what) {
    trackers.finish(RunStatus::finished);
    REQUIRE(warnings.size() == 1);
    CHECK_THAT(warnings[0], ContainsSubstring(what) && ContainsSubstring("left out"));
    CHECK(lines_of(dir / "other/" + c.file).size() >= 4);
  };
  SECTION("full") {
    fs::create_directory(dir / "run");
    fs::create_symlink("/dev/full", dir / "run/" + c.file);
    trackers.add(c.make(dir / "run"));
    log_some();
    check("run/" + c.file + ": cannot be written: No space left on device");
  }
  SECTION("a file where the directory should be") {
    std::ofstream(dir / "run") << "a file";
    trackers.add(c.make(dir / "run"));
    log_some();
    check("run: cannot be made: ");
  }
  SECTION("a directory where the file should be") {
    fs::create_directories(dir / "run/" + c.file);
    trackers.add(c.make(dir / "run"));
    log_some();
    check("run/" + c.file + ": cannot be opened: Is a directory");
  }
  SECTION("a pipe that nobody reads") {
    fs::create_directory(dir / "run");
    REQUIRE(::mkfifo((dir / "run/" + c.file).c_str(), 0600) == 0);
    trackers.add(c.make(dir / "run"));
    log_some();
    check("run/" + c.file + ": cannot be opened: nobody reads this pipe");
  }
  SECTION("a pipe whose reader goes") {  // no signal, which would end this program
    fs::create_directory(dir / "run");
    REQUIRE(::mkfifo((dir / "run/" + c.file).c_str(), 0600) == 0);
    const int reader = ::open((dir / "run/" + c.file).c_str(), O_RDONLY | O_NONBLOCK);
    trackers.add(c.make(dir / "run"));
    log_some();
    CHECK(warnings.empty());
    char first = 0;
    CHECK(::read(reader, &first, 1) == 1);
    CHECK(first == (c.file == "log.jsonl" ? '{' : 's'));
    ::close(reader);
    trackers.log({{"loss", 1}}, 4);
    check("run/" + c.file + ": cannot be written: Broken pipe");
  }
  SECTION("vanishing") {
    trackers.add(c.make(dir / "run"));
    log_some();
    CHECK(warnings.empty());
    fs::remove_all(dir / "run");
    for (int step = 4; step <= 6; ++step) trackers.log({{"loss", 1}}, step);
    check("run/" + c.file + ": has been deleted");
  }
}

TEST_CASE("a second run goes on with the files, without the line that a killed one has cut") {
  const TempDir dir;
  for (int run = 0; run < 3; ++run) {
    TrackerSet trackers(true);
    add_all(trackers, dir.path());
    trackers.begin({.name = "r", .first_step = run});
    trackers.log({{"loss", 1}}, run);
    trackers.finish(RunStatus::finished);
    // Longer than what is read at a time.
    for (const std::string file : {"log.jsonl", "scalars.csv"})
      std::ofstream(dir / file, std::ios::app) << "{\"cut" << std::string(run * 100'000, 'x');
  }
  const auto lines = lines_of(dir / "log.jsonl");
  REQUIRE(lines.size() == 10);
  for (std::size_t i = 0; i < 9; ++i)
    CHECK(Json::parse(lines[i])["type"] == (i % 3 == 0 ? "run" : i % 3 == 1 ? "scalars" : "end"));
  CHECK(lines_of(dir / "scalars.csv").size() == 5);
}

TEST_CASE("a killed process leaves whole lines and records, but perhaps for the last one") {
  const TempDir dir;
  const pid_t child = fork();
  if (child == 0) {
    TrackerSet trackers(true);
    add_all(trackers, dir.path());
    trackers.begin({.name = "r"});
    for (int step = 1;; ++step) trackers.log({{"train/loss", 1.0 / step}, {"train/lr", 1e-3}}, step);
  }
  while (!fs::exists(dir / "log.jsonl") || fs::file_size(dir / "log.jsonl") < 200'000)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  // The kernel may stop a write between two pages.
  std::vector<std::string> lines = lines_of(dir / "log.jsonl"), table = lines_of(dir / "scalars.csv");
  lines.pop_back();
  table.pop_back();
  CHECK(lines.size() > 1000);
  for (std::size_t i = 1; i < std::min(lines.size(), table.size()); ++i) {
    if (Json::parse(lines[i])["step"] != i) FAIL(lines[i]);
    if (std::count(table[i].begin(), table[i].end(), ',') != 3) FAIL(table[i]);
  }
  CHECK(records_in(without_cut_record(bytes_of(event_file_in(dir.path())))).size() > 1000);
}

TEST_CASE("only the main rank records") {
  const TempDir dir;
  int calls = 0;
  TrackerSet trackers(false, [](const std::string& warning) { FAIL(warning); });
  add_all(trackers, dir / "run");
  trackers.add(std::make_unique<FailingTracker>(1, calls));
  CHECK_FALSE(trackers.recording());
  trackers.begin({.name = "r"});
  trackers.log({{"loss", 1}}, 1);
  trackers.log_images("i", at::Tensor(), 1);  // not even looked at
  trackers.finish(RunStatus::finished);
  CHECK(calls == 0);
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("a set that goes without an end has failed") {
  const TempDir dir;
  try {
    TrackerSet trackers(true);
    trackers.add(json_lines_tracker(dir.path()));
    trackers.begin({.name = "r"});
    throw std::runtime_error("training failed");
  } catch (const std::runtime_error&) {
  }
  CHECK(json_lines_of(dir / "log.jsonl").back()["status"] == "failed");
}

TEST_CASE("what cannot be recorded is an error that says why") {
  TrackerSet trackers(true);
  const TempDir dir;
  trackers.add(csv_tracker(dir.path()));
  CHECK_THAT(error_of<ConfigError>([&] { trackers.log({{"loss", 1}}, 1); }), ContainsSubstring("call begin() first"));
  trackers.begin({.name = "r"});
  CHECK_THAT(error_of<ConfigError>([&] { trackers.begin({.name = "s"}); }), ContainsSubstring("'s'"));
  CHECK_THAT(error_of<ConfigError>([&] { trackers.add(csv_tracker(dir.path())); }), ContainsSubstring("add it before"));
  const auto images = [&](const at::Tensor& tensor, const std::vector<std::string>& captions = {}) {
    return error_of<ConfigError>([&] { trackers.log_images("i", tensor, 1, captions); });
  };
  CHECK_THAT(images(at::zeros({3, 4})), ContainsSubstring("'i'") && ContainsSubstring("[3, 4]"));
  CHECK_THAT(images(at::Tensor()), ContainsSubstring("undefined"));
  CHECK_THAT(images(at::zeros({1, 2, 4, 4})), ContainsSubstring("2 channels"));
  CHECK_THAT(images(at::zeros({1, 1, 4, 4}, at::kLong)), ContainsSubstring("Long") && ContainsSubstring("uint8"));
  CHECK_THAT(images(at::zeros({2, 1, 4, 4}), {"one"}), ContainsSubstring("1 captions for 2"));
  CHECK_THAT(error_of<ConfigError>([&] {
               trackers.log_matrix("m", {{"a", "b"}, {{1, 2}}}, 1);
             }),
             ContainsSubstring("'m'") && ContainsSubstring("2 rows and columns"));
  CHECK_THAT(error_of<ConfigError>([&] { trackers.log_histogram("h", at::Tensor(), 1); }),
             ContainsSubstring("real numbers"));
}

TEST_CASE("a histogram counts every finite value once") {
  const Histogram plain = histogram_of(at::tensor({0.0, 1.0, 2.0, 3.0, 4.0, kNan, kInfinity}), 4);
  CHECK(plain.edges == std::vector<double>{0, 1, 2, 3, 4});
  CHECK(plain.counts == std::vector<std::int64_t>{1, 1, 1, 2});
  CHECK(plain.count == 5);
  CHECK(plain.sum == 10);
  const Histogram same = histogram_of(at::full({7}, 2.5f));
  CHECK(same.edges == std::vector<double>{2.5, 2.5});
  CHECK(same.counts == std::vector<std::int64_t>{7});
  const Histogram wide = histogram_of(at::tensor({-1.7e308, 1.7e308}), 2);
  CHECK(wide.counts == std::vector<std::int64_t>{1, 1});
  CHECK(histogram_of(at::ones({2}, at::kBool)).sum == 2);
  CHECK(histogram_of(at::empty({0})).count == 0);
}
