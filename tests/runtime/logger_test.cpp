// What ranks say, and what becomes of it.
#include "tandem/runtime/logger.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Lines = std::vector<std::string>;

// The lines that ranks log.
Lines logged(int ranks, const std::function<void(Accelerator&, Logger&)>& body, LogLevel least = LogLevel::info) {
  Lines lines;
  LogSink sink([&](LogLevel level, const std::string& line) { lines.push_back(name_of(level) + (": " + line)); },
               least);
  run_ranks(ranks, [&](Accelerator& accelerator) {
    Logger logger(accelerator, sink);
    body(accelerator, logger);
  });
  return lines;
}

Lines sorted(Lines lines) {
  std::sort(lines.begin(), lines.end());
  return lines;
}

}  // namespace

TEST_CASE("the main rank logs alone unless all are asked for") {
  CHECK(logged(3, [](Accelerator&, Logger& logger) { logger.info("hello"); }) == Lines{"info: [rank 0] hello"});
  CHECK(sorted(logged(3, [](Accelerator&, Logger& logger) { logger.error("hello", {.ranks = LogRanks::all}); })) ==
        Lines{"error: [rank 0] hello", "error: [rank 1] hello", "error: [rank 2] hello"});
}

TEST_CASE("in order is the order of the ranks, whoever comes first") {
  const auto lines = logged(4, [](Accelerator& accelerator, Logger& logger) {
    for (int i = 0; i < 3; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5 * (3 - accelerator.rank())));
      logger.info(std::to_string(i), {.ranks = LogRanks::in_order});
    }
  });
  Lines expected;
  for (int i = 0; i < 3; ++i)
    for (int rank = 0; rank < 4; ++rank)
      expected.push_back("info: [rank " + std::to_string(rank) + "] " + std::to_string(i));
  CHECK(lines == expected);
}

TEST_CASE("once is once a text and rank, and does not disturb the order") {
  const auto lines = logged(2, [](Accelerator& accelerator, Logger& logger) {
    for (int i = 0; i < 3; ++i) logger.warning("careful", {.once = true});
    logger.warning("careful");
    if (accelerator.rank() == 1) logger.info("mine", {.ranks = LogRanks::all, .once = true});
    for (int i = 0; i < 2; ++i) logger.info("mine", {.ranks = LogRanks::in_order, .once = true});
    accelerator.wait_for_everyone();
  });
  CHECK(sorted(lines) ==
        Lines{"info: [rank 0] mine", "info: [rank 1] mine", "warning: [rank 0] careful", "warning: [rank 0] careful"});
}

TEST_CASE("levels below the least are left out, on all ranks alike") {
  const auto body = [](Accelerator&, Logger& logger) {
    logger.debug("d", {.ranks = LogRanks::in_order});
    logger.info("i");
    logger.warning("w", {.ranks = LogRanks::in_order});
  };
  CHECK(logged(2, body, LogLevel::debug).size() == 5);
  CHECK(logged(2, body) == Lines{"info: [rank 0] i", "warning: [rank 0] w", "warning: [rank 1] w"});
  CHECK(logged(2, body, LogLevel::error).empty());
}

TEST_CASE("each line of a text has its rank, and no other rank's line comes between") {
  CHECK(logged(1, [](Accelerator&, Logger& logger) { logger.info("one\n\ntwo\n"); }) ==
        Lines{"info: [rank 0] one", "info: [rank 0] ", "info: [rank 0] two"});
  CHECK(logged(1, [](Accelerator&, Logger& logger) { logger.info(""); }) == Lines{"info: [rank 0] "});
  const auto lines = logged(4, [](Accelerator&, Logger& logger) {
    for (int i = 0; i < 50; ++i) logger.info("one\ntwo", {.ranks = LogRanks::all});
  });
  REQUIRE(lines.size() == 400);
  for (std::size_t i = 0; i < 400; i += 2) {
    CHECK_THAT(lines[i], ContainsSubstring("one"));
    CHECK(lines[i + 1] == lines[i].substr(0, lines[i].size() - 3) + "two");
  }
}

TEST_CASE("a sink without a function is silence, and one that throws ends the launch") {
  LogSink silence({});
  run_ranks(2, [&](Accelerator& accelerator) {
    Logger logger(accelerator, silence);
    logger.error("unheard", {.ranks = LogRanks::in_order});
  });
  LogSink broken([](LogLevel, const std::string&) { throw std::runtime_error("the terminal is on fire"); });
  const auto error = run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
    Logger logger(accelerator, broken);
    logger.info("hello");
  });
  CHECK(error.rank() == 0);
  CHECK_THAT(error.what(), ContainsSubstring("the terminal is on fire"));
}
