// Gradients of ranks beside those of one model that sees all ranks' data.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/module.h>

#include "support/ranks.h"

namespace tandem::test {

/// The gradients of a model's parameters after each step; undefined where there is none.
using Gradients = std::vector<std::vector<at::Tensor>>;

inline std::vector<at::Tensor> gradients_of(const torch::nn::Module& module) {
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& parameter : module.parameters())
    gradients.push_back(parameter.grad().defined() ? parameter.grad().detach().to_dense().clone() : at::Tensor());
  return gradients;
}

/// The same weights wherever it is called. (Rank threads have generators of their own.)
inline void initialise(const torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(17);
  for (const at::Tensor& parameter : module.parameters())
    parameter.copy_(at::randn(parameter.sizes(), generator, at::dtype(at::kDouble)) * 0.5);
}

/// A descent by hand, so that each step has other weights.
inline void descend(const torch::nn::Module& module, double rate) {
  const at::NoGradGuard no_grad;
  for (const at::Tensor& parameter : module.parameters())
    if (parameter.grad().defined()) parameter.sub_(parameter.grad().detach(), rate);
}

inline void drop_gradients(const torch::nn::Module& module) {
  for (const at::Tensor& parameter : module.parameters()) parameter.mutable_grad().reset();
}

/// What is wrong with a rank's gradients beside `expected`; empty when nothing is.
inline std::string difference(const Gradients& actual, const Gradients& expected, double tolerance = 2e-5) {
  if (actual.size() != expected.size()) return "other numbers of steps";
  for (std::size_t step = 0; step < actual.size(); ++step)
    for (std::size_t i = 0; i < expected[step].size(); ++i) {
      const at::Tensor &a = actual[step][i], &e = expected[step][i];
      const std::string where = "step " + std::to_string(step) + ", parameter " + std::to_string(i) + ": ";
      if (a.defined() != e.defined()) return where + (a.defined() ? "has a gradient" : "has no gradient");
      if (!a.defined()) continue;
      if (a.scalar_type() != e.scalar_type() || a.sizes() != e.sizes()) return where + "other type or sizes";
      const double scale = std::max(1.0, e.numel() > 0 ? e.abs().max().item<double>() : 0.0);
      const double off = e.numel() > 0 ? (a - e).abs().max().item<double>() / scale : 0.0;
      if (!(off <= tolerance)) return where + "off by " + std::to_string(off);
    }
  return "";
}

/// Empty when every rank's gradients are `expected`, and the same bits on all of them.
inline std::string difference(const std::vector<Gradients>& ranks, const Gradients& expected, double tolerance = 2e-5) {
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    std::string found = difference(ranks[rank], expected, tolerance);
    if (found.empty()) found = difference(ranks[rank], ranks[0], 0);
    if (!found.empty()) return "rank " + std::to_string(rank) + ", " + found;
  }
  return "";
}

/// How to train one model on ranks.
struct Trial {
  std::function<std::shared_ptr<torch::nn::Module>()> make;
  std::function<at::Tensor(torch::nn::Module&, int rank, int step)> loss;
  int steps = 6;
  std::function<void(torch::nn::Module&, int step)> before_step = [](auto&, int) {};
  bool keep_gradients = false;  ///< from step to step
  LaunchConfig config{};
};

inline std::vector<Gradients> gradients_on_ranks(int ranks, const Trial& trial,
                                                 const std::function<void(nn::GradientReducer&)>& set_up = {}) {
  return on_ranks<Gradients>(ranks, trial.config, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(trial.make());
    initialise(*model);
    if (set_up) set_up(model.reducer());
    Gradients seen;
    for (int step = 0; step < trial.steps; ++step) {
      trial.before_step(*model, step);
      if (!trial.keep_gradients) drop_gradients(*model);
      accelerator.backward(trial.loss(*model, accelerator.rank(), step));
      seen.push_back(gradients_of(*model));
      descend(*model, 0.05);
    }
    return seen;
  });
}

/// The same of one model that sees all ranks' data.
inline Gradients gradients_of_all(int ranks, const Trial& trial) {
  const auto module = trial.make();
  initialise(*module);
  Gradients seen;
  for (int step = 0; step < trial.steps; ++step) {
    trial.before_step(*module, step);
    if (!trial.keep_gradients) drop_gradients(*module);
    // One pass a rank, as the ranks have them: a loss of a rank may not need all others.
    for (int rank = 0; rank < ranks; ++rank) (trial.loss(*module, rank, step) / ranks).backward();
    seen.push_back(gradients_of(*module));
    descend(*module, 0.05);
  }
  return seen;
}

}  // namespace tandem::test
