#include <array>
#include <limits>

#include "report/log.h"
#include "report/page.h"
#include "report/read_run.h"
#include "support/catch.h"

using namespace tandem::test;
using tandem_report::page;
using tandem_report::page_data;
using tandem_report::read_run;
using tandem_report::Run;
using Json = nlohmann::ordered_json;

namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++found;
  return found;
}

// What the page's scripts find between the tags of the data.
Json data_in(const std::string& html) {
  const std::size_t tag = html.find("<script type=\"application/json\""), begin = html.find('>', tag) + 1;
  return Json::parse(html.substr(begin, html.find("</script>", begin) - begin));
}

Run named(const std::string& name, const std::string& directory) {
  Run run;
  run.name = name;
  run.directory = directory;
  return run;
}

std::vector<std::string> labels(const std::vector<Run>& runs) {
  std::vector<std::string> result;
  const Json data = page_data(runs);
  for (const auto& run : data["runs"]) result.push_back(run["label"]);
  return result;
}

}  // namespace

TEST_CASE("nothing that a log holds ends the page's script or adds a tag") {
  const std::string hostile = "</script><script>alert(1)</script><!--<script>&lt;\"'\\ \u2028 {{script}} \xff\x01";
  Run run = named(hostile, "runs/" + hostile);
  run.device = run.status = hostile;
  run.config[hostile] = run.versions[hostile] = hostile;
  run.final_values[hostile] = 1;
  run.series[hostile].add(1, 2);
  run.events.push_back({1, hostile, hostile});
  run.texts.push_back({1, hostile, hostile});
  run.images[hostile].images.push_back({kPng, hostile});
  run.matrices[hostile] = {1, {hostile}, {{1}}};
  run.histograms[hostile].push_back({1, {0, 1}, {1}});
  run.notes.push_back(hostile);
  const std::string harmless = page(page_data({named("a", "b")})), html = page(page_data({run}));
  for (const std::string part : {"<script", "</script", "<!--", "<img", "alert(1)<"}) {
    CAPTURE(part);
    CHECK(count(html, part) == count(harmless, part));
  }
  // It arrives as it was, but for bytes that are no UTF-8.
  const auto data = data_in(html)["runs"][0];
  CHECK_THAT(data["texts"][0]["text"].get<std::string>(), ContainsSubstring("</script><script>alert(1)</script><!--"));
  CHECK_THAT(data["texts"][0]["text"].get<std::string>(), ContainsSubstring("{{script}}"));
}

TEST_CASE("a page allows no scripts but its own, and no network") {
  const std::string html = page(page_data({named("a", "b")})), other = page(page_data({named("a", "b")}));
  CHECK_THAT(html, ContainsSubstring("default-src 'none'; script-src 'nonce-"));
  CHECK(count(html, "<script nonce=") + count(html, "<script type=\"application/json\"") == count(html, "<script"));
  CHECK(html != other);  // a nonce of its own
  CHECK(count(html, "src=\"http") + count(html, "href=\"http") + count(html, "sourceMappingURL") == 0);
  CHECK_THAT(html, ContainsSubstring("Permission is hereby granted, free of charge"));
  CHECK_THAT(html, ContainsSubstring("Dan Vanderkam"));
}

TEST_CASE("runs are told apart by name, else by directory, else by number") {
  CHECK(labels({named("a", "x/one"), named("b", "x/two")}) == std::vector<std::string>{"a", "b"});
  CHECK(labels({named("a", "x/one"), named("a", "x/two/")}) == std::vector<std::string>{"a (one)", "a (two)"});
  CHECK(labels({named("", "x/one"), named("", "y/one")}) == std::vector<std::string>{"one", "one #2"});
}

TEST_CASE("series of the same steps share them, and values have the digits that a plot can show") {
  Run run = named("a", "a");
  for (int step = 1; step <= 3; ++step) {
    run.series["loss"].add(step, 1.23456789 * step);
    run.series["lr"].add(step, 1e-5 / 3);
  }
  run.series["eval"].add(3, std::numeric_limits<double>::quiet_NaN());
  const auto data = page_data({run})["runs"][0];
  CHECK(data["axes"] == Json::parse("[[3],[1,2,3],[]]"));
  CHECK(data["series"]["loss"]["axis"] == 1);
  CHECK(data["series"]["lr"]["axis"] == 1);
  CHECK(data["series"]["loss"]["mean"] == Json::parse("[1.2346,2.4691,3.7037]"));
  CHECK(!data["series"]["loss"].contains("low"));
  CHECK(data["series"]["lr"]["mean"][0] == 3.3333e-6);
  CHECK(data["series"]["eval"]["mean"][0].is_null());
  CHECK(data["series"]["eval"]["not_finite"] == Json::parse("[1,3]"));
}

TEST_CASE("images are inside the page as base64") {
  const std::array<std::pair<std::string, std::string>, 4> cases{
      {{"M", "TQ=="}, {"Ma", "TWE="}, {"Man", "TWFu"}, {"\xff\xfe\xfd\xfc", "//79/A=="}}};
  for (const auto& [bytes, text] : cases) {
    Run run = named("a", "a");
    run.images["worst"] = {7, {{bytes, "caption"}}};
    const auto images = page_data({run})["runs"][0]["images"];
    CHECK(images ==
          Json::parse(R"([{"name":"worst","step":7,"items":[{"png":")" + text + R"(","caption":"caption"}]}])"));
  }
}

TEST_CASE("a page stays small, however long the runs and many their values") {
  Run run = named("long", "long");
  for (int name = 0; name < 20; ++name)
    for (int step = 0; step < 20'000; ++step)
      run.series["value" + std::to_string(name)].add(step, 1.0 / (step + name + 1));
  CHECK(page(page_data({run, run, run})).size() < 4'000'000);
  Run many = named("many", "many");
  for (int name = 0; name < 500; ++name)
    for (int step = 0; step < 3000; ++step)
      many.series["value" + std::to_string(name)].add(step, 1.0 / (step + name + 1));
  CHECK(page(page_data({many, many})).size() < 4'000'000);
}
