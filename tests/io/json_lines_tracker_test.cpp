// What the tracker in JSON Lines writes, with its pictures, read back.
#include <ATen/Functions.h>

#include "data/image_decoder.h"
#include "io/tracker_files.h"
#include "support/catch.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;

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
