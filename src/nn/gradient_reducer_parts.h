#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <torch/csrc/autograd/function.h>

#include "nn/copy_on_write.h"
#include "tandem/nn/gradient_reducer.h"

namespace tandem::nn {

// A parameter and its gradient.
struct GradientReducer::Slot {
  // The node that adds to the gradient, with our hook.
  std::shared_ptr<torch::autograd::Node> accumulator;
  std::uintptr_t hook = 0;

  bool pending = false;     // reached since the last reduction
  bool in_window = false;   // reached in the accumulation window
  int arrivals = 0;         // in this pass: a part that is computed again, or several of them, may reach it repeatedly
  int expected = 0;         // arrivals in a pass, by the last one
  bool active = false;      // some rank's last pass had its gradient: it takes part in its bucket's reduction
  bool taken = false;       // by its bucket, in this pass
  bool unexpected = false;  // reduced after the buckets

  int bucket = -1;      // -1: none
  at::Tensor view;      // its part of the bucket, in the parameter's shape
  at::Tensor lendable;  // the same, when the bucket is shared by the ranks
  at::Tensor lent;      // what the parameter gets of that
  at::Tensor squares;   // of blocks of the view, float64
  bool squares_known = false;

  void leave_bucket() {
    if (lent.defined()) end_loan(lent);
    bucket = -1;
    for (at::Tensor* tensor : {&view, &lendable, &lent, &squares}) tensor->reset();
    squares_known = false;
  }
};

struct GradientReducer::Bucket {
  std::vector<std::size_t> slots;
  // With the memory; null where it is another rank's. Stays where it is when buckets are added.
  std::unique_ptr<GradientBucket> of_hook;
  int missing = 0;       // arrivals that are expected in this pass and have not come
  bool expects = false;  // any

  // Of this pass: what was taken, from where it is reduced, and into what.
  std::vector<std::size_t> taken;
  std::vector<at::Tensor> gradients, inputs, outputs, squares_of_outputs;
  std::uint64_t number = 0;  // of the started reduction
  FinishReduction finish;

  void clear_pass() {
    taken.clear();
    gradients.clear();
    inputs.clear();
    outputs.clear();
    squares_of_outputs.clear();
    number = 0;
    finish = nullptr;
  }
};

struct GradientReducer::Told {
  static constexpr std::uint8_t kDense = 1, kSparse = 2, kLate = 4;
  static constexpr int kSparseDims = 4;  // above these bits: the number of sparse dimensions
  std::vector<std::uint8_t> states;      // of the parameters
  std::size_t started = 0;               // buckets
  std::vector<std::size_t> order;        // parameters, as their gradients came
  std::uint64_t last_arrival = 0;        // by the count over all models; 0: none
  std::uint64_t passes = 0;              // that were reduced
};

}  // namespace tandem::nn
