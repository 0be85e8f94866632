// What trackers write, read back, and what happens when one cannot.
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <locale>
#include <thread>

#include <ATen/Functions.h>
#include <nlohmann/json.hpp>

#include "data/image_decoder.h"
#include "io/tf_record.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"
#include "tandem/io/file_trackers.h"
#include "tandem/io/tracker_set.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::vector<Json> json_lines_of(const std::string& path) {
  std::vector<Json> objects;
  for (const std::string& line : lines_of(path)) objects.push_back(Json::parse(line));
  return objects;
}

std::string event_file_in(const std::string& directory) {
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().filename().string().starts_with("events.out.tfevents.")) return entry.path();
  return "";
}

// The definition, bit by bit.
std::uint32_t reference_crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
  }
  return ~crc;
}

// Data of the records of a file's bytes; throws where they are not whole ones.
std::vector<std::string> records_in(const std::string& file) {
  std::size_t at = 0;
  const auto take = [&](std::size_t size) {
    if (file.size() - at < size) throw std::runtime_error("a record is cut off");
    at += size;
    return file.substr(at - size, size);
  };
  const auto check = [](const std::string& bytes, const std::string& stored) {
    const std::uint32_t masked = std::rotr(reference_crc32c(bytes), 15) + 0xA282EAD8u;
    if (std::memcmp(&masked, stored.data(), 4) != 0) throw std::runtime_error("a crc is wrong");
  };
  std::vector<std::string> records;
  while (at < file.size()) {
    const std::string length = take(8);
    check(length, take(4));
    std::uint64_t size = 0;
    std::memcpy(&size, length.data(), 8);
    records.push_back(take(size));
    check(records.back(), take(4));
  }
  return records;
}

std::vector<std::string> records_of(const std::string& path) { return records_in(bytes_of(path)); }

// The records at the beginning of a file that are there as a whole, by their lengths.
std::string without_cut_record(const std::string& file) {
  std::size_t at = 0;
  while (file.size() - at >= 8) {
    std::uint64_t size = 0;
    std::memcpy(&size, file.data() + at, 8);
    if (file.size() - at < 16 + size) break;
    at += 16 + size;
  }
  return file.substr(0, at);
}

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

void add_all(TrackerSet& trackers, const std::string& directory) {
  trackers.add(json_lines_tracker(directory));
  trackers.add(csv_tracker(directory));
  trackers.add(tensorboard_tracker(directory));
}

}  // namespace

TEST_CASE("JSON Lines have everything that was recorded") {
  const TempDir dir;
  const std::string path = dir / "runs/first";
  TrackerSet trackers(true);
  trackers.add(json_lines_tracker(path));
  trackers.begin(
      {.name = "a run", .config = {{"lr", 1e-3}, {"batch_size", 64}, {"model", "mlp"}, {"shuffle", true}}, .ranks = 2});
  trackers.log({{"train/loss", 0.1}, {"train/epoch", 3}}, 12);
  trackers.log_text("sample", "two\nlines \"quoted\"", 13);
  trackers.log_histogram("weights", at::tensor({1.0, 2.0, 2.0, 5.0}), 14);
  trackers.log_images("eval/worst", at::tensor({0, 255, 128, 7}).to(at::kByte).view({1, 1, 2, 2}), 15, {"a seven"});
  trackers.log_matrix("eval/confusion", {{"cat", "dog"}, {{3, 1}, {0, 4}}}, 16);
  trackers.log_event("checkpoint", "checkpoints/checkpoint_3", 17);
  trackers.finish(RunStatus::interrupted, {{"test/accuracy", 0.97}});

  auto lines = json_lines_of(path + "/log.jsonl");
  REQUIRE(lines.size() == 8);
  for (Json& line : lines) {
    CHECK(line["time"].get<double>() > 1.7e9);
    line.erase("time");
  }
  CHECK(lines[0]["versions"]["libtorch"].get<std::string>().starts_with("2."));
  CHECK(lines[0]["versions"].contains("tandem"));
  lines[0].erase("versions");
  CHECK(lines[0] == Json::parse(R"({"type":"run","name":"a run","config":{"lr":0.001,"batch_size":64,"model":"mlp",
                                    "shuffle":true},"ranks":2,"device":"cpu"})"));
  CHECK(lines[0]["config"]["batch_size"].is_number_integer());
  CHECK(lines[1] == Json::parse(R"({"type":"scalars","step":12,"values":{"train/loss":0.1,"train/epoch":3.0}})"));
  CHECK(lines[2] == Json::parse(R"({"type":"text","step":13,"name":"sample","text":"two\nlines \"quoted\""})"));
  CHECK(lines[3]["edges"].size() == 65);
  lines[3].erase("edges");
  std::int64_t counted = 0;
  for (const auto& count : lines[3]["counts"]) counted += count.get<std::int64_t>();
  CHECK(counted == 4);
  CHECK(lines[3]["counts"].front() == 1);
  CHECK(lines[3]["counts"].back() == 1);
  lines[3].erase("counts");
  CHECK(lines[3] == Json::parse(R"({"type":"histogram","step":14,"name":"weights","min":1.0,"max":5.0,"sum":10.0,
                                    "sum_squares":34.0,"count":4})"));
  CHECK(lines[4] == Json::parse(R"({"type":"images","step":15,"name":"eval/worst",
                                    "files":["images/eval_worst-000015-0.png"],"captions":["a seven"]})"));
  CHECK(lines[5] == Json::parse(R"({"type":"matrix","step":16,"name":"eval/confusion","labels":["cat","dog"],
                                    "values":[[3.0,1.0],[0.0,4.0]]})"));
  CHECK(lines[6] == Json::parse(R"({"type":"event","step":17,"name":"checkpoint",
                                    "detail":"checkpoints/checkpoint_3"})"));
  CHECK(lines[7] == Json::parse(R"({"type":"end","status":"interrupted","values":{"test/accuracy":0.97}})"));
}

TEST_CASE("pictures are PNG files of the given pixels, and names that look alike have files of their own") {
  const TempDir dir;
  const int channels = GENERATE(1, 3);
  const at::Tensor images = at::randint(0, 256, {3, channels, 5, 4}).to(at::kByte);
  TrackerSet trackers(true);
  trackers.add(json_lines_tracker(dir.path()));
  trackers.begin({.name = "r"});
  trackers.log_images("a/b", images, 1);
  trackers.log_images("a_b", images.to(at::kFloat) / 255, 1);
  trackers.log_images("../../ä", images.slice(0, 0, 1), 1);
  trackers.finish(RunStatus::finished);
  const auto lines = json_lines_of(dir / "log.jsonl");
  REQUIRE(lines.size() == 5);
  CHECK(lines[3]["files"][0] == "images/.._..___-000001-0.png");
  for (const auto& line : {lines[1], lines[2]})
    for (std::size_t i = 0; i < 3; ++i) {
      const std::string path = dir / line["files"][i].get<std::string>();
      const std::string png = bytes_of(path);
      const auto decoded = data::decode_image(path, {png.begin(), png.end()}, {.channels = channels});
      CHECK(at::equal(decoded.pixels.permute({2, 0, 1}), images[static_cast<std::int64_t>(i)]));
    }
  CHECK(lines[1]["files"] != lines[2]["files"]);
}

TEST_CASE("CSV has a line a number, in full, with odd names quoted") {
  const TempDir dir;
  TrackerSet trackers(true);
  trackers.add(csv_tracker(dir.path()));
  trackers.begin({.name = "r"});
  trackers.log({{"loss", 0.1}, {"a, \"b\"", -1e-300}, {"none", kNan}, {"much", kInfinity}, {"little", -kInfinity}}, 7);
  trackers.log_text("t", "left out", 7);
  trackers.finish(RunStatus::finished);
  auto lines = lines_of(dir / "scalars.csv");
  REQUIRE(lines.size() == 6);
  CHECK(lines[0] == "step,time,name,value");
  const auto without_time = [](const std::string& line) {
    const std::size_t first = line.find(','), second = line.find(',', first + 1);
    CHECK(std::stod(line.substr(first + 1)) > 1.7e9);
    return line.substr(0, first) + line.substr(second);
  };
  CHECK(without_time(lines[1]) == "7,loss,0.1");
  CHECK(without_time(lines[2]) == "7,\"a, \"\"b\"\"\",-1e-300");
  CHECK(without_time(lines[3]) == "7,none,nan");
  CHECK(without_time(lines[4]) == "7,much,inf");
  CHECK(without_time(lines[5]) == "7,little,-inf");
}

TEST_CASE("TensorBoard's files are whole records with right checksums") {
  CHECK(crc32c("123456789") == 0xE3069283u);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAu);  // RFC 3720, B.4
  const TempDir dir;
  TrackerSet trackers(true);
  trackers.add(tensorboard_tracker(dir.path()));
  trackers.begin({.name = "r", .config = {{"lr", 1e-3}}});
  for (int step = 0; step < 100; ++step) trackers.log({{"loss", 1.0 / step}, {"lr", 1e-3}}, step);
  trackers.finish(RunStatus::finished);
  const auto records = records_of(event_file_in(dir.path()));
  REQUIRE(records.size() == 104);
  CHECK_THAT(records[0], ContainsSubstring("brain.Event:2"));
  CHECK_THAT(records[2], ContainsSubstring("_hparams_/session_start_info"));
  CHECK_THAT(records[50], ContainsSubstring("loss") && ContainsSubstring("lr"));
  CHECK_THAT(records[103], ContainsSubstring("_hparams_/session_end_info"));
}

TEST_CASE("infinite and NaN values are null in JSON Lines") {
  const TempDir dir;
  TrackerSet trackers(true);
  trackers.add(json_lines_tracker(dir.path()));
  trackers.begin({.name = "r"});
  trackers.log({{"a", kNan}, {"b", kInfinity}, {"c", -kInfinity}}, 1);
  trackers.log_histogram("none", at::tensor({kNan}), 1);
  trackers.finish(RunStatus::finished, {{"accuracy", kNan}});
  const auto lines = json_lines_of(dir / "log.jsonl");
  for (const char* name : {"a", "b", "c"}) CHECK(lines[1]["values"].at(name).is_null());
  CHECK(lines[2]["min"].is_null());
  CHECK(lines[2]["count"] == 0);
  CHECK(lines[3]["values"].at("accuracy").is_null());
}

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

TEST_CASE("a failed TensorBoard file leaves the other trackers, and silence is possible") {
  const TempDir dir;
  TrackerSet trackers(true);
  add_all(trackers, dir.path());
  trackers.begin({.name = "r"});
  fs::remove(event_file_in(dir.path()));
  for (int step = 1; step <= 3; ++step) trackers.log({{"loss", 1}}, step);
  trackers.finish(RunStatus::finished);
  CHECK(lines_of(dir / "log.jsonl").size() == 5);
  CHECK(lines_of(dir / "scalars.csv").size() == 4);
  CHECK(event_file_in(dir.path()).empty());
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
