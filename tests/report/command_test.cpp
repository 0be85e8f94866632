// `tandem report` as its user sees it.
#include <filesystem>
#include <fstream>

#include "report/log.h"
#include "support/catch.h"
#include "support/run_program.h"

using namespace tandem::test;

namespace {

auto report(const std::string& arguments) { return run_program(std::string(TANDEM_TOOL) + " report " + arguments); }

}  // namespace

TEST_CASE("the report goes into the first run's directory, or where -o says") {
  const RunDir first(scalar(1, "loss", "1")), second(scalar(1, "loss", "2"));
  const auto result = report(first.path() + " " + second.path());
  CHECK(result.exit_code == 0);
  CHECK(result.output == first.path() + "/report.html\n");
  CHECK(std::filesystem::file_size(first.path() + "/report.html") > 100'000);
  const std::string other = second.path() + "/other.html";
  CHECK(report(first.path() + " -o " + other).exit_code == 0);
  CHECK(std::filesystem::exists(other));
  CHECK(report(first.path() + " -o /dev/stdout >" + other + ".piped").output.empty());
  CHECK(std::filesystem::file_size(other + ".piped") == std::filesystem::file_size(other));
}

TEST_CASE("wrong arguments of report exit with 2, a file that cannot be written with 1") {
  const RunDir run(scalar(1, "loss", "1"));
  const TempDir empty;
  CHECK(report("").exit_code == 2);
  CHECK(report(run.path() + " --wat").exit_code == 2);
  const auto none = report("/nowhere/at/all");
  CHECK(none.exit_code == 2);
  CHECK_THAT(none.output, ContainsSubstring("'/nowhere/at/all' is no directory"));
  const auto without = report(run.path() + " " + empty.path());
  CHECK(without.exit_code == 2);
  CHECK_THAT(without.output, ContainsSubstring("holds no log.jsonl"));
  const auto unwritable = report(run.path() + " -o /nowhere/report.html");
  CHECK(unwritable.exit_code == 1);
  CHECK_THAT(unwritable.output,
             ContainsSubstring("/nowhere/report.html: cannot be written: the directory '/nowhere' does not"));
}

TEST_CASE("report --help has examples") {
  const auto help = report("--help");
  CHECK(help.exit_code == 0);
  CHECK_THAT(help.output, ContainsSubstring("tandem report runs/adamw runs/sgd -o compare.html"));
}
