// What the tracker in CSV writes, read back.
#include "io/tracker_files.h"
#include "support/catch.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;

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
