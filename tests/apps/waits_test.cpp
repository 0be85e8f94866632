// In steady state a training on GPUs waits for no device: the fake CUDA counts each wait of the hosts, and names who did.
#include <map>
#include <sstream>

#include "support/train_program.h"

using namespace tandem::test;

namespace {

using Waits = std::map<std::string, int>;  // how often, by what was waited for and where

// Of a whole training of so many updates.
Waits waits_of(const std::string& arguments, int updates) {
  const TempDir dir;
  const auto result = run_program("TANDEM_FAKE_WAITS=" + (dir / "waits") + " " + TANDEM_ON_FAKE_MACHINE + " " +
                                  TANDEM_FAKE_GPU_MODULE + " " + TANDEM_FAKE_DRIVER + " " + TANDEM_TRAIN + " " +
                                  arguments + " --threads-per-rank 1 --max-steps " + std::to_string(updates) +
                                  " --log-json " + (dir / "log") + " --project-dir " + (dir / "project"));
  CAPTURE(arguments, result.output);
  REQUIRE(result.exit_code == 0);
  REQUIRE(read_log(dir / "log").size() == static_cast<std::size_t>(updates) + 1);
  Waits waits;
  std::ifstream file(dir / "waits");
  int count = 0;
  for (std::string line; file >> count && std::getline(file >> std::ws, line);) waits[line] += count;
  return waits;
}

constexpr int kUpdates = 200;

// What kUpdates more updates of the same training wait for.
Waits waits_of_updates(const std::string& arguments) {
  Waits more = waits_of(arguments, 30 + kUpdates);
  for (const auto& [place, count] : waits_of(arguments, 30)) more[place] -= count;
  std::erase_if(more, [](const auto& one) { return one.second == 0; });
  return more;
}

}  // namespace

TEST_CASE("a training on GPUs waits for no device") {
  const TempDir dir;
  const std::string text = write_text(dir, 30'000);
  for (const std::string& flags : std::vector<std::string>{"--gpus 1 --hidden 8"}) {
    const Waits waits = waits_of_updates(flags + " --batch-size 4 --log-with jsonl,csv,tensorboard");
    CAPTURE(flags);
    CHECK(waits == Waits{});
  }
}
