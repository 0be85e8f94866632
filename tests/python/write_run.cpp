// Writes a run for tensorboard_test.py into the folder of the first argument, from the step of the second (default 0).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

#include <ATen/Functions.h>

#include "tandem/io/file_trackers.h"
#include "tandem/io/tracker_set.h"

int main(int argc, char** argv) {
  using namespace tandem::io;
  if (argc < 2) return 2;
  TrackerSet trackers(true, [](const std::string& warning) {
    std::fprintf(stderr, "%s\n", warning.c_str());
    std::exit(1);
  });
  trackers.add(tensorboard_tracker(argv[1]));
  const std::int64_t first = argc > 2 ? std::atoll(argv[2]) : 0;
  trackers.begin({.name = "a run",
                  .config = {{"lr", 1e-3}, {"batch_size", 64}, {"model", "mlp"}, {"shuffle", true}},
                  .first_step = first});
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (std::int64_t step = std::max<std::int64_t>(first, 1); step <= 997; ++step)
    trackers.log({{"train/loss", 1.0 / static_cast<double>(step)}}, step);
  trackers.log({{"train/loss", std::numeric_limits<double>::quiet_NaN()}}, 998);
  trackers.log({{"train/loss", kInfinity}}, 999);
  trackers.log({{"train/loss", -kInfinity}}, 1000);
  trackers.log({{"odd/ü\xff", 1}}, 1000);
  trackers.log_histogram("weights", at::arange(10), 3);
  trackers.log_histogram("same", at::full({5}, 2), 3);
  trackers.log_histogram("none", at::empty({0}), 3);
  const at::Tensor grey = at::arange(6).view({1, 1, 2, 3}) * 50;
  trackers.log_images("eval/worst", at::cat({grey, grey + 1}).to(at::kByte), 5, {"a four", "a five"});
  trackers.log_text("sample", "Größe: 1\n", 6);
  trackers.log_matrix("eval/confusion", {{"cat", "dog"}, {{3, 1}, {0, 4}}}, 7);
  trackers.log_event("checkpoint", "checkpoints/1", 8);
  trackers.finish(RunStatus::finished);
  return 0;
}
