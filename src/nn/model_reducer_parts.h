// What a ModelReducer keeps of each parameter and of each bucket, and what a pass of all models of a rank is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>

#include "nn/copy_on_write.h"
#include "tandem/nn/gradient_bucket.h"

namespace tandem::nn {

// Waits for a GPU.
inline bool is_zero(const at::Tensor& gradient) {
  return gradient.is_sparse() ? gradient._nnz() == 0 : !gradient.detach().any().item<bool>();
}

// The backward pass that all models of a rank share. ReducerGroup has it; the models' hooks write to it.
struct RankPass {
  bool keeps_apart = false;                                  // see ReducerGroup::keep_apart
  std::uint64_t arrivals = 0;                                // gradients that have come in this pass, of all models
  std::function<void()> bucket_complete;                     // starts those buckets whose turn it is
  std::function<void(const at::Tensor& parameter)> arrived;  // in exact mode: hears of each gradient; may take it
};

// A parameter, and where its gradient stands.
struct ParameterSlot {
  // The node that adds to the gradient, with our hooks.
  std::shared_ptr<torch::autograd::Node> accumulator;
  std::uintptr_t hook = 0;
  const torch::autograd::FunctionPreHook* hook_before = nullptr;

  void stop_watching() {
    if (!accumulator) return;
    accumulator->del_post_hook(hook);
    std::erase_if(accumulator->pre_hooks(), [this](const auto& one) { return one.get() == hook_before; });
    accumulator.reset();
  }

  bool pending = false;     // reached since the last reduction
  bool in_window = false;   // reached in the accumulation window
  int arrivals = 0;         // in this pass: a part that is computed again, or several of them, may reach it repeatedly
  int expected = 0;         // arrivals in a pass, by the last one
  bool active = false;      // some rank's last pass had its gradient: it takes part in its bucket's reduction
  bool taken = false;       // by its bucket, in this pass
  bool unexpected = false;  // reduced after the buckets
  bool kept = false;        // the program refers to the gradient, which then is reduced where it is

  // What the gradient held when the window began to add to it, where it is to be told apart from what the window adds.
  at::Tensor before;
  bool before_is_local = false;  // not all of it is reduced
  bool before_is_lost = false;   // the program has written to the gradient since
  using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  WeakTensor left{c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>()};
  std::uint32_t left_version = 0;  // of `left`, the gradient as the window's last pass has left it

  void leave(const at::Tensor& gradient) {
    if (!gradient.defined()) return left.reset();
    left = WeakTensor(gradient.getIntrusivePtr());
    left_version = static_cast<std::uint32_t>(gradient._version());
  }

  bool is_as_left(const at::Tensor& gradient) const {
    return gradient.defined() && gradient.unsafeGetTensorImpl() == left._unsafe_get_target() &&
           static_cast<std::uint32_t>(gradient._version()) == left_version;
  }

  void forget_window() {
    in_window = before_is_local = before_is_lost = false;
    before.reset();
    left.reset();
  }

  int bucket = -1;      // -1: none
  at::Tensor view;      // its part of the bucket, in the parameter's shape
  at::Tensor lendable;  // what is lent of it, when the bucket is shared by the ranks
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

// Gradients that are reduced together.
struct ReducedBucket {
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

// What a rank tells the others of a model when its pass has ended.
struct PassReport {
  static constexpr std::uint8_t kDense = 1, kSparse = 2, kLate = 4;
  static constexpr std::uint8_t kLocalBefore = 8;  // ParameterSlot::before_is_local
  static constexpr int kSparseDims = 4;            // above these bits: the number of sparse dimensions
  std::vector<std::uint8_t> states;                // of the parameters
  std::size_t started = 0;                         // buckets
  std::vector<std::size_t> order;                  // parameters, as their gradients came
  std::uint64_t last_arrival = 0;                  // by the count over all models; 0: none
  std::uint64_t passes = 0;                        // that were reduced
};

}  // namespace tandem::nn
