#pragma once

#include <concepts>
#include <memory>
#include <ostream>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

#include "tandem/core/error.h"
#include "tandem/nn/gradient_reducer.h"
#include "tandem/nn/precision.h"
#include "tandem/trace/range.h"

namespace torch::serialize {
class InputArchive;
class OutputArchive;
}  // namespace torch::serialize

namespace tandem::nn {

/// Throws ConfigError when `module`, which is prepared, is somewhere else than on `device`.
void check_on_device(const torch::nn::Module& module, c10::Device device);

/// Throws ConfigError when a floating-point parameter of `module`, which is prepared, has another type than `type`.
void check_of_type(const torch::nn::Module& module, at::ScalarType type);

/// What `prepare` returns for a module: the module itself with its gradients kept in step on all ranks.
///
/// Called like the module, `model(images)`; its members are reached with `->`, and so is a forward pass without mixed
/// precision. The module that was given to `prepare` is the same one and stays usable; where a function wants its
/// holder, a Model converts to it. Copies share the module.
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
    reducer_->note_call();
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

  /// The holder that LibTorch has for the module, for functions that take one, as `torch::nn::Linear`. A forward pass
  /// through it is one without mixed precision.
  template <class Holder>
  requires std::same_as<typename Holder::ContainedType, Impl>
  operator Holder() const { return Holder(module_); }

  /// The module's, for optimizers and clipping.
  std::vector<at::Tensor> parameters(bool recurse = true) const { return module_->parameters(recurse); }

  /// The module's parameters with their names.
  auto named_parameters(bool recurse = true) const { return module_->named_parameters(recurse); }

  /// The module's buffers.
  std::vector<at::Tensor> buffers(bool recurse = true) const { return module_->buffers(recurse); }

  /// The module's buffers with their names.
  auto named_buffers(bool recurse = true) const { return module_->named_buffers(recurse); }

  /// Writes what LibTorch writes of the module.
  friend std::ostream& operator<<(std::ostream& to, const Model& model) { return to << *model.module_; }

  /// Puts the module into training mode, or out of it. Not collective.
  void train(bool on = true) const { module_->train(on); }

  /// Puts the module into evaluation mode. Not collective.
  void eval() const { module_->eval(); }

  /// Whether the module is in training mode.
  bool is_training() const { return module_->is_training(); }

  /// Does nothing: `prepare` has moved the module to its rank's device. For loops that move it all the same. Throws
  /// ConfigError for another device.
  void to(c10::Device device, bool non_blocking = false) const {
    static_cast<void>(non_blocking);
    check_on_device(*module_, device);
  }

  /// Does nothing where the parameters are of that type. Throws ConfigError otherwise: a module is converted before it
  /// is prepared.
  void to(at::ScalarType type, bool non_blocking = false) const {
    static_cast<void>(non_blocking);
    check_of_type(*module_, type);
  }

  /// What keeps its gradients in step, for a communication hook or unused_parameters().
  GradientReducer& reducer() const { return *reducer_; }

 private:
  std::shared_ptr<Impl> module_;
  std::shared_ptr<GradientReducer> reducer_;
  c10::DeviceType device_;
  Precision precision_;
};

/// torch::save(model, file) does not compile: all ranks would write the file at the same time.
template <class Impl>
torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive, const Model<Impl>&) {
  static_assert(!std::is_same_v<Impl, Impl>,
                "torch::save of a prepared model: use accelerator.save_model(model, directory) on all ranks, or on one "
                "rank torch::save(model.module(), file)");
  return archive;
}

/// torch::load(model, file) does not compile: each rank would get weights of its own.
template <class Impl>
torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, Model<Impl>&) {
  static_assert(!std::is_same_v<Impl, Impl>,
                "torch::load into a prepared model: use accelerator.load_model(model, directory) on all ranks, or "
                "torch::load(net, file) before prepare, which gives all ranks rank 0's weights");
  return archive;
}

/// The module of what a program has in hand: a prepared model, a module holder, or a shared_ptr to a module. Null where
/// that is empty.
template <class Impl>
std::shared_ptr<Impl> module_of(const Model<Impl>& model) {
  return model.module();
}

/// Of a holder.
template <class Holder>
requires requires { typename Holder::ContainedType; }
std::shared_ptr<typename Holder::ContainedType> module_of(const Holder& holder) {
  return holder.is_empty() ? nullptr : holder.ptr();
}

/// Of a shared_ptr: itself.
template <std::derived_from<torch::nn::Module> Impl>
std::shared_ptr<Impl> module_of(const std::shared_ptr<Impl>& module) {
  return module;
}

/// What module_of takes.
template <class T>
concept HasModule = requires(const T& value) {
  module_of(value);
};

/// Parameters of what module_of takes. Throws ConfigError where that is empty.
template <HasModule T>
std::vector<at::Tensor> parameters_of(const T& value) {
  const auto module = module_of(value);
  if (!module) throw ConfigError("an empty module has no parameters; give one that was made");
  return module->parameters();
}

}  // namespace tandem::nn
