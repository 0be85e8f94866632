// Hooks on all tensors that a thread's graphs save. LibTorch has them for Python only.
#pragma once

#include <functional>
#include <memory>

#include <torch/csrc/autograd/saved_variable_hooks.h>

namespace tandem::nn {

using MakeSavedTensorHooks = std::function<std::unique_ptr<torch::autograd::SavedVariableHooks>()>;

/// While alive, each tensor that the calling thread's graphs save gets hooks of `make`; those of a scope around it get
/// none. Destroyed on the thread that made it.
class SavedTensorHooksScope {
 public:
  explicit SavedTensorHooksScope(MakeSavedTensorHooks make);
  ~SavedTensorHooksScope();
  SavedTensorHooksScope(const SavedTensorHooksScope&) = delete;
  SavedTensorHooksScope& operator=(const SavedTensorHooksScope&) = delete;

 private:
  MakeSavedTensorHooks make_;
  const SavedTensorHooksScope* around_;
  friend std::unique_ptr<torch::autograd::SavedVariableHooks> saved_tensor_hooks();
};

/// Hooks of the calling thread's innermost scope; null outside of any.
std::unique_ptr<torch::autograd::SavedVariableHooks> saved_tensor_hooks();

}  // namespace tandem::nn
