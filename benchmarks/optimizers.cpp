// optimizers: the fused steps, each beside torch::optim's own step or beside the time that its memory traffic takes. 1
// intra-op thread; what is compared alternates in one process, and the figures are medians of the thread's own time
// (which other programs on the machine do not count in).
#include <time.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "statistics.h"
#include "tandem/optim/fused_step.h"

namespace {

using tandem::optim::FusedStep;

bool as_json = false;

void print(const std::string& what, double fused, const char* peer, double other, double ratio, const char* goal) {
  if (as_json)
    std::printf("%s\n", nlohmann::ordered_json{{"benchmark", "optimizers"},
                                               {"what", what},
                                               {"fused_ms", fused * 1e3},
                                               {"peer", peer},
                                               {"peer_ms", other * 1e3},
                                               {"ratio", ratio}}
                            .dump()
                            .c_str());
  else
    std::printf("%-34s fused %9.3f ms   %-22s %9.3f ms   ratio %6.2f   %s\n", what.c_str(), fused * 1e3, peer,
                other * 1e3, ratio, goal);
  std::fflush(stdout);
}

// Time that this thread has run.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double seconds_of(const std::function<void()>& work) {
  const double start = now();
  work();
  return now() - start;
}

struct Pair {
  double first, second;  // medians, seconds
  double ratio() const { return first / second; }
};

// Each `in_a_row` times, alternating. After one run of each that is not counted: it makes the state.
Pair compare(int runs, int in_a_row, const std::function<void()>& first, const std::function<void()>& second) {
  std::vector<double> firsts, seconds;
  first();
  second();
  for (int run = 0; run < runs; ++run) {
    for (int i = 0; i < in_a_row; ++i) firsts.push_back(seconds_of(first));
    for (int i = 0; i < in_a_row; ++i) seconds.push_back(seconds_of(second));
  }
  return {benchmarks::spread_of(firsts).median, benchmarks::spread_of(seconds).median};
}

std::vector<at::Tensor> make_parameters(int count, at::IntArrayRef shape) {
  std::vector<at::Tensor> parameters;
  for (int i = 0; i < count; ++i) {
    parameters.push_back(at::randn(shape).requires_grad_());
    parameters.back().mutable_grad() = at::randn(shape);
  }
  return parameters;
}

// 100 parameters of 64 x 64. Twenty steps in a row of each: caches are as warm as the steps themselves leave them.
template <class Optimizer, class Options>
void small_tensors(const char* what, const Options& options, const char* goal, int runs) {
  Optimizer fused_optimizer(make_parameters(100, {64, 64}), options), plain(make_parameters(100, {64, 64}), options);
  FusedStep fused(fused_optimizer);
  const Pair pair = compare(
      runs, 20, [&] { plain.step(); }, [&] { fused.step(); });
  print(std::string(what) + ", 100 of 64 x 64", pair.second, "torch::optim", pair.first, pair.ratio(), goal);
}

// Reads what AdamW reads of each element (weight, gradient, two averages) and writes what it writes (all but the
// gradient), with an addition each so that nothing is left out.
void stream(const std::vector<at::Tensor>& tensors) {
  float* __restrict__ weight = tensors[0].mutable_data_ptr<float>();
  const float* __restrict__ gradient = tensors[1].const_data_ptr<float>();
  float* __restrict__ average = tensors[2].mutable_data_ptr<float>();
  float* __restrict__ square_average = tensors[3].mutable_data_ptr<float>();
  const std::int64_t size = tensors[0].numel();
  for (std::int64_t i = 0; i < size; ++i) {
    weight[i] += gradient[i];
    average[i] += gradient[i];
    square_average[i] += gradient[i];
  }
}

void one_large_tensor(std::int64_t elements, int runs) {
  const auto parameters = make_parameters(1, {elements});
  torch::optim::AdamW adamw(parameters, torch::optim::AdamWOptions(1e-3));
  FusedStep fused(adamw);
  fused.step();
  auto& state = static_cast<torch::optim::AdamWParamState&>(*adamw.state().begin()->second);
  // The same memory, so that neither has better pages.
  const std::vector<at::Tensor> buffers{parameters[0].detach(), parameters[0].grad(), state.exp_avg(),
                                        state.exp_avg_sq()};
  const Pair pair = compare(
      runs, 1, [&] { fused.step(); }, [&] { stream(buffers); });
  print("AdamW, " + std::to_string(elements / 1000000) + " million", pair.first, "4 reads and 3 writes", pair.second,
        pair.ratio(), "at most 1.2");
}

}  // namespace

int main(int argc, char** argv) {
  std::int64_t millions = 100;
  int runs = 15;
  CLI::App app("Fused optimizer steps beside torch::optim's and beside their memory traffic", "optimizers");
  app.add_option("--millions", millions, "elements of the large parameter (16 bytes each)")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--runs", runs, "steps of each, for the large parameter; 20 times as many for the small ones")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", as_json, "print one JSON object a figure");
  CLI11_PARSE(app, argc, argv);

  at::set_num_threads(1);
  small_tensors<torch::optim::AdamW>("AdamW", torch::optim::AdamWOptions(1e-3), "at least 5", runs);
  small_tensors<torch::optim::Adam>("Adam", torch::optim::AdamOptions(1e-3), "", runs);
  small_tensors<torch::optim::SGD>("SGD with momentum", torch::optim::SGDOptions(1e-3).momentum(0.9), "", runs);
  one_large_tensor(millions * 1000000, runs);
}
