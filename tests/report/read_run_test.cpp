#include <cmath>
#include <filesystem>

#include "report/log.h"
#include "report/read_run.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "tandem/core/error.h"

using namespace tandem::test;
using tandem_report::read_run;

namespace {

const std::string kBegin = R"({"type":"run","name":"mine","time":100,"config":{"lr":0.1,"model":"mlp","hidden":[5,6]},)"
                           R"("versions":{"tandem":"0.1.0"},"ranks":2,"device":"cpu"})"
                           "\n";

std::vector<double> values_of(const tandem_report::Series& series) {
  std::vector<double> values;
  for (const auto& point : series.points()) values.push_back(point.value);
  return values;
}

std::string joined(const std::vector<std::string>& notes) {
  std::string text;
  for (const auto& note : notes) text += note + "\n";
  return text;
}

}  // namespace

TEST_CASE("a log is read as it was written") {
  const RunDir dir(kBegin + scalar(1, "train/loss", "2.5", 101) + scalar(2, "train/loss", "null", 102) +
                   R"({"type":"text","step":2,"time":102,"name":"sample","text":"In the beginning"})"
                   "\n"
                   R"({"type":"histogram","step":2,"name":"weights","edges":[0,1,2],"counts":[3,4],"count":7})"
                   "\n"
                   R"({"type":"matrix","step":2,"name":"eval/confusion","labels":["a","b"],"values":[[1,2],[3,4]]})"
                   "\n"
                   R"({"type":"event","step":2,"name":"checkpoint","detail":"checkpoints/checkpoint_0"})"
                   "\n"
                   R"({"type":"end","time":103,"status":"finished","values":{"test/accuracy":0.975}})"
                   "\n");
  const auto run = read_run(dir.path());
  CHECK(run.name == "mine");
  CHECK(run.ranks == 2);
  CHECK(run.device == "cpu");
  CHECK(run.config == std::map<std::string, std::string>{{"hidden", "[5,6]"}, {"lr", "0.1"}, {"model", "mlp"}});
  CHECK(run.versions.at("tandem") == "0.1.0");
  REQUIRE(run.series.at("train/loss").points().size() == 2);
  CHECK(run.series.at("train/loss").points()[0].value == 2.5);
  CHECK(std::isnan(run.series.at("train/loss").points()[1].value));
  CHECK(values_of(run.elapsed) == std::vector<double>{1, 2});
  CHECK(run.texts.at(0).text == "In the beginning");
  CHECK(run.histograms.at("weights").at(0).counts == std::vector<double>{3, 4});
  CHECK(run.matrices.at("eval/confusion").values[1] == std::vector<double>{3, 4});
  CHECK(run.matrices.at("eval/confusion").labels == std::vector<std::string>{"a", "b"});
  CHECK(run.events.at(0).detail == "checkpoints/checkpoint_0");
  CHECK(run.status == "finished");
  CHECK(run.final_values.at("test/accuracy") == 0.975);
  CHECK(run.started == 100);
  CHECK(run.ended == 103);
  CHECK(joined(run.notes) == "");
}

TEST_CASE("a resumed run forgets the steps that it takes again, and the pause") {
  const std::string event = R"({"type":"event","step":)";
  const RunDir dir(kBegin + scalar(1, "loss", "1", 101) + scalar(2, "loss", "2", 102) + scalar(3, "loss", "3", 103) +
                   scalar(3, "eval", "30", 103) + event + "3,\"name\":\"checkpoint\",\"detail\":\"lost\"}\n" +
                   scalar(4, "loss", "4", 104) + R"({"type":"run","name":"mine","time":1000,"config":{"lr":0.2}})" +
                   "\n" + event + "1,\"name\":\"resumed\",\"detail\":\"\"}\n" + scalar(2, "loss", "20", 1001) +
                   scalar(3, "loss", "30", 1002));
  const auto run = read_run(dir.path());
  CHECK(values_of(run.series.at("loss")) == std::vector<double>{1, 20, 30});
  CHECK(run.series.at("eval").points().empty());
  CHECK(values_of(run.elapsed) == std::vector<double>{1, 2, 3});
  REQUIRE(run.events.size() == 1);
  CHECK(run.events[0].name == "resumed");
  CHECK(run.config.at("lr") == "0.2");
}

TEST_CASE("damaged lines are left out, and notes say which") {
  const RunDir dir(std::string("\n") + scalar(1, "loss", "1") + "nonsense\n" + scalar(2, "loss", "2") + "[1]\n{}\n" +
                   R"({"type":"wat","step":1})" + "\n" + R"({"type":"scalars","values":{"loss":9}})" + "\n" +
                   R"({"type":"scalars","step":-3,"values":{"loss":9}})" + "\n" + R"({"type":"scalars","step":3})" +
                   "\n" + R"({"type":"scalars","step":4,"values":{"loss":"high","lr":[1],"ok":1}})" + "\n" +
                   R"({"type":"histogram","step":1,"name":"h","edges":[1,2],"counts":[1,2]})" + "\n" +
                   R"({"type":"matrix","step":1,"name":"m","values":[[1,2],[3]]})" + "\n" + std::string(3000, '[') +
                   "\n\xff\xfe\n" + scalar(5, "loss", "5") + R"({"type":"scalars","st)");
  const auto run = read_run(dir.path());
  CHECK(values_of(run.series.at("loss")) == std::vector<double>{1, 2, 5});
  CHECK(run.series.at("ok").points().size() == 1);
  CHECK(!run.series.contains("lr"));
  CHECK(run.histograms.empty());
  CHECK(run.matrices.empty());
  const auto notes = joined(run.notes);
  CHECK_THAT(notes, ContainsSubstring("line 3 of the log is no JSON object"));
  CHECK_THAT(notes, ContainsSubstring("line 7 of the log is of an unknown type"));
  CHECK_THAT(notes, ContainsSubstring("line 8 of the log has no step"));
  CHECK_THAT(notes, ContainsSubstring("further lines of the log are left out"));
}

TEST_CASE("a last line that is cut off is left out with a note") {
  const RunDir dir(kBegin + scalar(1, "loss", "1") + R"({"type":"scalars","step":2,"val)");
  const auto run = read_run(dir.path());
  CHECK(values_of(run.series.at("loss")) == std::vector<double>{1});
  CHECK(joined(run.notes) == "line 3 of the log is cut off and is left out\n");
}

TEST_CASE("lines of any length and number of parts are put together again") {
  std::string log;
  for (int step = 0; step < 3000; ++step)
    log += R"({"type":"scalars","step":)" + std::to_string(step) + R"(,"filler":")" +
           std::string(static_cast<std::size_t>(step) % 977 * 3, 'x') + R"(","values":{"loss":)" +
           std::to_string(step) + "}}\n";
  log += R"({"type":"text","step":1,"name":"long","text":")" + std::string(5'000'000, 'y') + "\"}\n" +
         scalar(3000, "loss", "1");
  const RunDir dir(log);
  const auto run = read_run(dir.path());
  CHECK(run.series.at("loss").points().size() == 3001);
  CHECK(run.texts.at(0).text.size() < 70'000);
  CHECK(joined(run.notes) == "");
}

TEST_CASE("texts are cut between characters") {
  const RunDir dir(scalar(1, std::string(199, 'a') + "ä…", "1"));
  CHECK(read_run(dir.path()).series.begin()->first == std::string(199, 'a') + "…");
}

TEST_CASE("images are read from inside the run's directory only") {
  const std::vector<std::string> files{"images/good.png",
                                       "../secret.png",
                                       "/etc/passwd",
                                       "images/../../secret.png",
                                       "images/link.png",
                                       "images/text.png",
                                       "images",
                                       "images/none.png",
                                       ""};
  std::string names, captions;
  for (const auto& file : files) {
    names += (names.empty() ? "\"" : ",\"") + file + '"';
    captions += (captions.empty() ? "\"of " : ",\"of ") + file + '"';
  }
  const RunDir dir(R"({"type":"images","step":4,"name":"eval/worst","files":[)" + names + R"(],"captions":[)" +
                   captions + "]}\n" +
                   R"({"type":"images","step":5,"name":"eval/worst","files":["../secret.png"],"captions":[]})" + "\n");
  const TempDir outside;
  std::ofstream(outside / "secret.png", std::ios::binary) << kPng << "secret";
  dir.write("images/good.png", kPng);
  dir.write("images/text.png", "no picture");
  std::filesystem::create_symlink(outside / "secret.png", dir.path() + "/images/link.png");
  const auto run = read_run(dir.path());
  REQUIRE(run.images.at("eval/worst").images.size() == 1);
  CHECK(run.images.at("eval/worst").step == 4);
  CHECK(run.images.at("eval/worst").images[0].png == kPng);
  CHECK(run.images.at("eval/worst").images[0].caption == "of images/good.png");
  const auto notes = joined(run.notes);
  for (const std::string file : {"../secret.png", "/etc/passwd", "images/../../secret.png", "images/link.png"})
    CHECK_THAT(notes, ContainsSubstring("the image '" + file + "' has no path inside the run's directory"));
  CHECK_THAT(notes, ContainsSubstring("'images/text.png' is no PNG file"));
  CHECK_THAT(notes, ContainsSubstring("'images/none.png' cannot be found"));
}

TEST_CASE("a log with more names than a page can show keeps the first, and says so") {
  std::string log;
  for (int i = 0; i < 2000; ++i) log += scalar(1, "name" + std::to_string(i), "1");
  const RunDir dir(log);
  const auto run = read_run(dir.path());
  CHECK(run.series.size() == 500);
  CHECK(run.series.contains("name0"));
  CHECK_THAT(joined(run.notes), ContainsSubstring("more than a page can show"));
}

TEST_CASE("histograms of a long run are thinned over all of it") {
  std::string log;
  for (int step = 0; step < 1000; ++step)
    log +=
        R"({"type":"histogram","step":)" + std::to_string(step) + R"(,"name":"w","edges":[0,1],"counts":[1]})" + "\n";
  const RunDir dir(log);
  const auto histograms = read_run(dir.path()).histograms.at("w");
  CHECK(histograms.size() <= 40);
  CHECK(histograms.size() >= 20);
  CHECK(histograms.front().step == 0);
  CHECK(histograms.back().step > 900);
}

TEST_CASE("a directory without a run is an error that says what to name") {
  const TempDir dir;
  CHECK_THAT(error_of<tandem::ConfigError>([&] { read_run(dir / "none"); }), ContainsSubstring("is no directory"));
  CHECK_THAT(error_of<tandem::ConfigError>([&] { read_run(dir.path()); }), ContainsSubstring("holds no log.jsonl"));
}
