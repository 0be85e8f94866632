#include "measure/optimizer_step.h"

#include <time.h>

#include <functional>
#include <vector>

#include <ATen/Functions.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "measure/statistics.h"
#include "tandem/optim/fused_step.h"

namespace measure {
namespace {

using tandem::optim::FusedStep;

// Time that this thread has run.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double thread_seconds_of(const std::function<void()>& work) {
  const double start = now();
  work();
  return now() - start;
}

struct Pair {
  double first, second;  // medians, seconds
};

// Each `in_a_row` times, alternating. After one run of each that is not counted: it makes the state.
Pair compare(int runs, int in_a_row, const std::function<void()>& first, const std::function<void()>& second) {
  std::vector<double> firsts, seconds;
  first();
  second();
  for (int run = 0; run < runs; ++run) {
    for (int i = 0; i < in_a_row; ++i) firsts.push_back(thread_seconds_of(first));
    for (int i = 0; i < in_a_row; ++i) seconds.push_back(thread_seconds_of(second));
  }
  return {spread_of(firsts).median, spread_of(seconds).median};
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
template <class Kind, class Options>
StepTimes small_tensors(const Options& options, int runs) {
  Kind fused_optimizer(make_parameters(100, {64, 64}), options), plain(make_parameters(100, {64, 64}), options);
  FusedStep fused(fused_optimizer);
  const Pair pair = compare(
      runs, 20, [&] { plain.step(); }, [&] { fused.step(); });
  return {.fused = pair.second, .peer = pair.first};
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

}  // namespace

StepTimes step_of_small_tensors(Optimizer optimizer, int runs) {
  switch (optimizer) {
    case Optimizer::adam: return small_tensors<torch::optim::Adam>(torch::optim::AdamOptions(1e-3), runs);
    case Optimizer::sgd: return small_tensors<torch::optim::SGD>(torch::optim::SGDOptions(1e-3).momentum(0.9), runs);
    case Optimizer::adamw: break;
  }
  return small_tensors<torch::optim::AdamW>(torch::optim::AdamWOptions(1e-3), runs);
}

StepTimes step_of_large_tensor(std::int64_t elements, int runs) {
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
  return {.fused = pair.first, .peer = pair.second};
}

}  // namespace measure
