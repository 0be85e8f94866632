#pragma once

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

#include "tandem/nn/gradient_reducer.h"
#include "tandem/nn/precision.h"
#include "tandem/trace/range.h"

namespace tandem::nn {

/// What `prepare` returns for a module: the module itself with its gradients kept in step on all ranks.
///
/// Called like the module, `model(images)`; its members are reached with `->`, and so is a forward pass without mixed
/// precision. Copies share the module.
template <class Impl>
class Model {
 public:
  /// Forward passes autocast to `precision` on `device`.
  Model(std::shared_ptr<Impl> module, std::shared_ptr<GradientReducer> reducer,
        c10::DeviceType device = c10::DeviceType::CPU, Precision precision = Precision::no)
      : module_(std::move(module)), reducer_(std::move(reducer)), device_(device), precision_(precision) {}

  /// The module's forward, in mixed precision where the launch asks for it; what it returns is float32 again (see
  /// to_float32). Throws what the module throws, and ConfigError where LibTorch has no kernel for the precision. Not
  /// collective: ranks may call it any number of times.
  template <class... Args>
  auto operator()(Args&&... args) const {
    const trace::Range range(trace::Event::forward);
    const auto forward = [&] {
      const AutocastScope scope(device_, precision_);
      return module_->forward(std::forward<Args>(args)...);
    };
    if (precision_ == Precision::no) return forward();
    try {
      if constexpr (std::is_void_v<decltype(forward())>)
        return forward();
      else
        return to_float32(forward());
    } catch (...) {
      explain_missing_kernel(device_, precision_);
      throw;
    }
  }

  Impl* operator->() const { return module_.get(); }  ///< the module
  Impl& operator*() const { return *module_; }        ///< the module

  /// The module, for code that wants a shared_ptr.
  const std::shared_ptr<Impl>& module() const { return module_; }

  /// The module's, for optimizers and clipping.
  std::vector<at::Tensor> parameters() const { return module_->parameters(); }

  /// What keeps its gradients in step, for a communication hook or unused_parameters().
  GradientReducer& reducer() const { return *reducer_; }

 private:
  std::shared_ptr<Impl> module_;
  std::shared_ptr<GradientReducer> reducer_;
  c10::DeviceType device_;
  Precision precision_;
};

}  // namespace tandem::nn
