// gradients: training steps on 2 CPU ranks whose reduced gradients are one memory, beside ones with a copy each;
// without and with clipping, whose norm comes with the reduction then. One after the other, in turns; medians.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <ATen/Functions.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "measure/statistics.h"
#include "tandem/tandem.h"

namespace {

constexpr int kRows = 16, kRounds = 7, kSteps = 20;

enum class Clip { no, norm_only, scales };

double resident_mb() {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string word; file >> word;)
    if (word == "Pss:") {
      file >> word;
      return std::stod(word) * 1024 / 1e6;
    }
  return 0;
}

struct Measured {
  double seconds = 0, megabytes = 0;  // of a step; of the process after the optimizer's step
};

struct Setup {
  int ranks = 2, wide = 1024, layers = 8;
  bool share = true;   // the gradients
  bool divide = true;  // the updates, and share the weights
  Clip clip = Clip::no;
};

// Parameters, gradients and AdamW's two averages, in MB.
double least_mb(const Setup& setup) { return 4.0 * 4 * setup.layers * setup.wide * (setup.wide + 1) / 1e6; }

Measured train(const Setup& setup) {
  Measured measured;
  tandem::launch({.cpu = setup.ranks,
                  .sharding = setup.divide ? tandem::Sharding::automatic : tandem::Sharding::none,
                  .gradient_reducer = {.share_gradients = setup.share}},
                 [&](tandem::Accelerator& accelerator) {
                   torch::nn::Sequential net;
                   for (int i = 0; i < setup.layers; ++i) net->push_back(torch::nn::Linear(setup.wide, setup.wide));
                   torch::optim::AdamW adamw(net->parameters(), 1e-4);
                   auto [model, optimizer] = accelerator.prepare(net, adamw);
                   const auto rows = at::randn({kRows, setup.wide});
                   const auto step = [&] {
                     accelerator.backward(model(rows).square().mean());
                     if (setup.clip != Clip::no)
                       accelerator.clip_grad_norm_(
                           model, setup.clip == Clip::scales ? 1e-6 : std::numeric_limits<double>::infinity());
                     optimizer.step();
                   };
                   for (int i = 0; i < 5; ++i) {
                     optimizer.zero_grad();
                     step();
                   }
                   accelerator.wait_for_everyone();
                   const auto start = std::chrono::steady_clock::now();
                   for (int i = 0; i < kSteps; ++i) {
                     optimizer.zero_grad();
                     step();
                   }
                   const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
                   accelerator.wait_for_everyone();
                   if (accelerator.is_main()) measured = {time.count() / kSteps, resident_mb()};
                   accelerator.wait_for_everyone();
                 });
  return measured;
}

void compare(const char* what, Clip clip) {
  std::vector<double> shared, own, shared_mb, own_mb;
  for (int round = 0; round < kRounds; ++round) {
    const Measured with = train({.clip = clip}), without = train({.share = false, .clip = clip});
    shared.push_back(with.seconds);
    own.push_back(without.seconds);
    shared_mb.push_back(with.megabytes);
    own_mb.push_back(without.megabytes);
  }
  std::printf("%-26s one memory %7.2f ms %7.0f MB   a copy each %7.2f ms %7.0f MB   time ratio %5.2f\n", what,
              measure::spread_of(shared).median * 1e3, measure::spread_of(shared_mb).median,
              measure::spread_of(own).median * 1e3, measure::spread_of(own_mb).median,
              measure::spread_of(shared).median / measure::spread_of(own).median);
}

void compare_memory() {
  for (const int ranks : {1, 2, 4}) {
    Setup setup{.ranks = ranks, .wide = 2048, .layers = 16};
    std::printf("%d ranks, a model whose weights, gradients and AdamW's averages are %.0f MB   process %5.0f MB", ranks,
                least_mb(setup), train(setup).megabytes);
    setup.share = setup.divide = false;
    std::printf("   nothing shared %5.0f MB\n", train(setup).megabytes);
  }
}

}  // namespace

int main() {
  compare("no clipping", Clip::no);
  compare("norm, nothing to clip", Clip::norm_only);
  compare("clipping", Clip::scales);
  compare_memory();
}
