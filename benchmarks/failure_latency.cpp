// failure_latency: how long after an exception on one rank, while the others wait, `launch` throws it. Goal: at most
// 100 ms.
#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>

#include <ATen/Functions.h>

#include "measure/statistics.h"
#include "tandem/tandem.h"

namespace {

using Clock = std::chrono::steady_clock;
using tandem::Accelerator;

constexpr int kRuns = 50;

struct Endless : torch::data::datasets::Dataset<Endless, at::Tensor> {
  std::function<void()> on_read;
  explicit Endless(std::function<void()> on_read) : on_read(std::move(on_read)) {}
  at::Tensor get(std::size_t) override {
    on_read();
    return at::ones({1});
  }
  std::optional<std::size_t> size() const override { return std::size_t{1} << 30; }
};

// Milliseconds from the exception on the last rank to the end of the launch. `wait` is what the others do meanwhile;
// they have slept long enough by then to wait in the kernel.
double one_run(int ranks, bool loader, const std::function<void(Accelerator&)>& wait) {
  Clock::time_point thrown;
  const auto fail = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    thrown = Clock::now();
    throw std::runtime_error("disk on fire");
  };
  tandem::LaunchConfig config{.cpu = ranks};
  config.data_loader.dispatch_batches = loader;
  try {
    tandem::launch(config, [&](Accelerator& accelerator) {
      if (loader) {
        auto batches = accelerator.prepare(tandem::data::DataLoader(Endless(fail)));
        for (auto& batch : batches) accelerator.reduce(batch);
      } else if (accelerator.is_last()) {
        fail();
      } else {
        wait(accelerator);
      }
    });
  } catch (const tandem::RankError&) {
  }
  return std::chrono::duration<double, std::milli>(Clock::now() - thrown).count();
}

void show_latency(const char* name, int ranks, bool loader, const std::function<void(Accelerator&)>& wait) {
  std::vector<double> times;
  for (int run = 0; run < kRuns; ++run) times.push_back(one_run(ranks, loader, wait));
  const auto spread = measure::spread_of(times);
  std::printf("%-18s  %5d  %9.2f  %6.2f\n", name, ranks, spread.median, spread.max);
}

}  // namespace

int main() {
  std::puts("others wait in      ranks  median ms  max ms");
  for (int ranks : {2, 8}) {
    show_latency("all-reduce", ranks, false, [](Accelerator& a) { a.reduce(at::ones({1024})); });
    show_latency("barrier", ranks, false, [](Accelerator& a) { a.wait_for_everyone(); });
    show_latency("dispatching loader", ranks, true, {});
  }
}
