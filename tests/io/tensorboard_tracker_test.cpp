// What the tracker for TensorBoard writes, read back. TensorBoard itself reads it in tests/python.
#include "io/tf_record.h"
#include "io/tracker_files.h"
#include "support/catch.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;

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
