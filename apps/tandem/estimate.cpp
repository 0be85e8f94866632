#include "estimate.h"

#include <algorithm>

namespace tandem_tool {
namespace {

// Measured with benchmarks/memory_estimates.
constexpr double kProcess = 135e6;          // a program with LibTorch that has trained
constexpr double kRank = 2e6;               // a thread and what it keeps
constexpr double kFragmentation = 1.5;      // of the tensors of an evaluation, whose sizes are not those of training
constexpr double kMostKept = 2;             // a rank keeps so many times what its tensors have used (src/backend)
constexpr double kLowerPrecision = 1.0;     // casts of the weights and their gradients, by the bytes of float32 weights
constexpr double kLowerActivations = 0.65;  // of float32's: norms, losses and inputs stay as they are

double state_copies(Update update) { return update == Update::sgd ? 0 : update == Update::momentum ? 1 : 2; }

// What ranks that share have of one copy's bytes.
struct Copies {
  double weights, gradients, state, exchange;
};

// Before the second step nobody knows yet that the weights can be shared, nor the gradients.
Copies at_first(const Training& training) {
  const double ranks = training.ranks, state = state_copies(training.update);
  if (training.ranks == 1) return {1, 1, state, 0};
  return {ranks, ranks, training.sharding == tandem::Sharding::none ? ranks * state : state, 1};
}

Copies afterwards(const Training& training) {
  Copies copies = at_first(training);
  copies.exchange = 0;
  copies.gradients = 1;
  if (training.sharding == tandem::Sharding::automatic) copies.weights = 1;
  return copies;
}

// Of what ranks have freed when they began to share, as much stays with them: measured, a copy each.
double kept_copies(const Training& training) {
  return training.ranks > 1 && training.sharding == tandem::Sharding::automatic ? training.ranks : 0;
}

double activations_in_training(const Training& training) {
  const double lower = training.precision == tandem::Precision::no ? 1 : kLowerActivations;
  return lower * training.training_sample * static_cast<double>(training.batch);
}

// With what a rank keeps of the one kind of tensors while it makes the other. `others`: bytes of its other tensors.
double activations_kept(const Training& training, double others) {
  const double trained = activations_in_training(training), evaluated = training.evaluation_batch;
  const double most = kMostKept * (others + std::max(trained, evaluated)) - others;
  return std::min(most, trained + kFragmentation * evaluated);
}

double casts(const Training& training) {
  return training.precision == tandem::Precision::no ? 0 : kLowerPrecision * training.weights;
}

std::vector<MemoryPart> of_gpu(const Training& training) {
  const double state = state_copies(training.update) * training.weights,
               activations = activations_in_training(training);
  return {{"weights", training.weights, training.weights},
          {"gradients", training.weights, training.weights},
          {"optimizer state", state, state},
          {"casts of the weights", casts(training), casts(training)},
          {"activations", activations, activations}};
}

std::vector<MemoryPart> parts_of(const Training& training, const Copies& peak, double peak_activations) {
  const Copies later = afterwards(training);
  const double ranks = training.ranks, weights = training.weights;
  return {{"process", kProcess + kRank * ranks, kProcess + kRank * ranks},
          {"data", training.data, training.data},
          {"weights", peak.weights * weights, later.weights * weights},
          {"gradients", peak.gradients * weights, later.gradients * weights},
          {"optimizer state", peak.state * weights, later.state * weights},
          {"exchange of the first steps", peak.exchange * weights, 0},
          {"kept for ranks' next tensors", 0, kept_copies(training) * weights},
          {"casts of the weights", ranks * casts(training), ranks * casts(training)},
          {"activations", peak_activations, ranks * activations_in_training(training)}};
}

}  // namespace

double peak_of(const std::vector<MemoryPart>& parts) {
  double sum = 0;
  for (const MemoryPart& part : parts) sum += part.peak;
  return sum;
}

double later_of(const std::vector<MemoryPart>& parts) {
  double sum = 0;
  for (const MemoryPart& part : parts) sum += part.later;
  return sum;
}

std::vector<MemoryPart> estimate(const Training& training) {
  if (training.gpu) return of_gpu(training);
  const Copies later = afterwards(training);
  const double own = (later.weights + later.gradients + later.state) * training.weights / training.ranks;
  const auto first = parts_of(training, at_first(training), training.ranks * activations_in_training(training));
  const auto end = parts_of(training, later, training.ranks * activations_kept(training, own));
  return peak_of(first) > peak_of(end) ? first : end;
}

}  // namespace tandem_tool
