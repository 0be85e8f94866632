// Exact mode on (fake) GPUs.
#include "backend/cuda/gpu_backend.h"
#include "runtime/exact_networks.h"
#include "support/fake_module.h"

using namespace tandem;
using namespace tandem::test;

namespace {

LaunchConfig on_gpus(LaunchConfig config, int ranks) {
  config.cpu.reset();
  config.backend = cuda::make_gpu_backend(std::make_shared<FakeModule>());
  for (int rank = 0; rank < ranks; ++rank) config.devices.push_back(rank);
  return config;
}

std::string bits_on_gpus(const ExactRun& run, int ranks) { return bits_of(run, on_gpus(run.config(ranks), ranks)); }

}  // namespace

TEST_CASE("exact mode gives the same bits on 1, 2, 4 and 8 devices, which are those of CPU ranks") {
  fake::reset();
  const auto run =
      GENERATE(values<ExactRun>({{.layers = Layers::linear},
                                 {.layers = Layers::linear, .clip = true},
                                 {.layers = Layers::batch_norm},
                                 {.layers = Layers::memory, .accumulation = 2, .dispatch = true},
                                 {.layers = Layers::linear, .stepper = Stepper::adamw_not_fused, .dropout = false},
                                 {.layers = Layers::linear, .precision = Precision::fp16}}));
  CAPTURE(static_cast<int>(run.layers), run.clip);
  const std::string on_one = bits_on_gpus(run, 1);
  REQUIRE(on_one.size() > 1000);
  for (const int ranks : {2, 4, 8}) {
    CAPTURE(ranks);
    CHECK((bits_on_gpus(run, ranks) == on_one));
  }
  // Fused steps on GPUs round learning rates.
  if (!run.dropout) CHECK((bits_of(run, 2) == on_one));
  CHECK(fake::races().empty());
}

TEST_CASE("exact mode gives the same bits on devices that divide their updates") {
  fake::reset();
  const ExactRun run{.layers = Layers::memory, .clip = true};
  const std::string on_one = bits_on_gpus(run, 1);
  REQUIRE(on_one.size() > 1000);
  for (const int ranks : {2, 4, 8}) {
    LaunchConfig config = on_gpus(run.config(ranks), ranks);
    config.sharding = Sharding::optimizer;
    CAPTURE(ranks);
    CHECK((bits_of(run, config) == on_one));
  }
}
