#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

#include "tandem/nn/gradient_reducer.h"

namespace tandem::nn {

/// What `prepare` returns for a module: the module itself with its gradients kept in step on all ranks.
///
/// Called like the module, `model(images)`; its members are reached with `->`. Copies share the module.
template <class Impl>
class Model {
 public:
  Model(std::shared_ptr<Impl> module, std::shared_ptr<GradientReducer> reducer)
      : module_(std::move(module)), reducer_(std::move(reducer)) {}

  /// The module's forward. Not collective: ranks may call it any number of times.
  template <class... Args>
  auto operator()(Args&&... args) const {
    return module_->forward(std::forward<Args>(args)...);
  }

  Impl* operator->() const { return module_.get(); }
  Impl& operator*() const { return *module_; }

  /// The module, for code that wants a shared_ptr.
  const std::shared_ptr<Impl>& module() const { return module_; }

  std::vector<at::Tensor> parameters() const { return module_->parameters(); }
  GradientReducer& reducer() const { return *reducer_; }

 private:
  std::shared_ptr<Impl> module_;
  std::shared_ptr<GradientReducer> reducer_;
};

}  // namespace tandem::nn
