#include "tandem/nn/local_sgd.h"

#include <string>

#include "tandem/core/error.h"

namespace tandem::nn {

LocalSgd::LocalSgd(const GradientReducers& models, const GradientState& state, int steps)
    : models_(models), state_(state), steps_(steps) {
  if (steps < 1)
    throw ConfigError("local_sgd with " + std::to_string(steps) + " steps between averages; use 1 or more");
}

void LocalSgd::step() {
  if (!state_.closes_window()) return;
  windows_ += 1;
  if (windows_ % steps_ == 0) average();
}

void LocalSgd::average() {
  for (const auto& model : models_) model->average_weights();
}

}  // namespace tandem::nn
