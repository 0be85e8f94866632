#pragma once

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/nn/module.h>

#include "tandem/data/batch.h"
#include "tandem/nn/detail/checkpointed_region.h"
#include "tandem/nn/model.h"

namespace tandem::nn {

namespace detail {

template <class T>
inline constexpr bool is_model = false;
template <class Impl>
inline constexpr bool is_model<Model<Impl>> = true;

// A function, or a module: its holder, a shared_ptr to it, or what prepare returned.
template <class Function, class... Inputs>
decltype(auto) call_function_or_module(Function& function, Inputs&&... inputs) {
  constexpr bool has_forward = requires { function.forward(std::forward<Inputs>(inputs)...); };
  constexpr bool leads_to_forward = requires { function->forward(std::forward<Inputs>(inputs)...); };
  // A holder of Sequential can be called as well, but gives nothing.
  if constexpr (has_forward)
    return function.forward(std::forward<Inputs>(inputs)...);
  else if constexpr (leads_to_forward && !is_model<std::remove_const_t<Function>>)
    return function->forward(std::forward<Inputs>(inputs)...);
  else
    return std::invoke(function, std::forward<Inputs>(inputs)...);
}

// A kept input as it was given.
template <class Input>
decltype(auto) as_given(std::decay_t<Input>& kept) {
  if constexpr (std::is_array_v<std::remove_reference_t<Input>>)
    return (kept);
  else
    return static_cast<Input&&>(kept);
}

}  // namespace detail

/// Computes `function(inputs...)`, of which the graph keeps none of the tensors in between: when a backward pass comes
/// to it, `function` is computed again. That takes about the time of one more forward pass, and leaves of each such
/// part its inputs instead of all that is within. (Activation checkpointing; torch.utils.checkpoint with
/// use_reentrant=False. Checkpoints of a training's state are Accelerator::save_state's.)
///
///     for (auto& block : blocks) x = tandem::nn::checkpoint(block, x);                                   // a module
///     auto [a, b] = tandem::nn::checkpoint([&](const at::Tensor& t) { return split(t, heads); }, x);     // a function
///
/// The gradients are those of `function(inputs...)`, to the bit. The graph is the same one, so everything that goes
/// with it does: hooks, gradient reduction, accumulation, weights that are used twice, retain_graph, several backward
/// passes, torch::autograd::grad, gradients of gradients. Calls nest. Where gradients are off it is a plain call.
///
/// Computed again, `function` finds what it found before: the thread's generators (CPU and GPU) where they were, so
/// that dropout draws the same; autocast; and what it writes to, such as the running statistics of batch norms, which
/// count once. Generators and written tensors are afterwards as they were when the backward pass came. What else it
/// does, it does twice. It has to do the same both times: a module that was switched to evaluation in between, or a
/// branch on something else that changes, saves other tensors, which a backward pass finds (c10::Error). It is left by
/// an exception as soon as everything is there that is needed, so it must not swallow exceptions that it does not know.
///
/// `function` and the inputs are copied, and live until the graph has gone; what `function` refers to must live as
/// long. Inputs may be tensors, what a batch may be made of (data/batch.h), and anything else, as long as it owns what
/// it refers to. The result may be anything.
///
/// Throws what `function` throws; from it as well, ConfigError where it writes to a tensor that was computed before it
/// (x.relu_() on an input), which would be written to twice. Backward passes throw what `function` throws, and
/// c10::Error where a parameter or an input was written to since the forward pass, or where other tensors come out.
template <class Function, class... Inputs>
auto checkpoint(Function&& function, Inputs&&... inputs) {
  using Kept = std::decay_t<Function>;
  static_assert(
      !std::is_base_of_v<torch::nn::Module, Kept>,
      "nn::checkpoint keeps what it is given: give it the module's holder or a shared_ptr to it, since a copy "
      "of the module itself is another module");
  static_assert(!(data::detail::is_instance<std::decay_t<Inputs>, c10::ArrayRef> || ...),
                "nn::checkpoint keeps its inputs: give it a std::vector in place of a list that refers to one");
  using Result = decltype(detail::call_function_or_module(function, std::forward<Inputs>(inputs)...));
  if (!at::GradMode::is_enabled()) {
    if constexpr (std::is_void_v<Result>)
      return detail::call_function_or_module(function, std::forward<Inputs>(inputs)...);
    else
      return std::decay_t<Result>(detail::call_function_or_module(function, std::forward<Inputs>(inputs)...));
  }
  std::tuple<std::decay_t<Inputs>...> kept(inputs...);
  std::vector<at::Tensor> tensors;
  data::for_each_tensor(kept, [&](at::Tensor& tensor) {
    tensors.push_back(tensor);
    tensor = detail::CheckpointedRegion::placeholder();
  });
  detail::CheckpointedRegion region(
      tensors, [function = Kept(function), kept = std::move(kept)](const std::vector<at::Tensor>& again) {
        auto inputs_again = kept;
        auto next = again.begin();
        data::for_each_tensor(inputs_again, [&](at::Tensor& tensor) { tensor = *next++; });
        auto function_again = function;
        std::apply(
            [&](auto&... each) {
              static_cast<void>(detail::call_function_or_module(function_again, detail::as_given<Inputs>(each)...));
            },
            inputs_again);
      });
  tensors.clear();
  if constexpr (std::is_void_v<Result>) {
    detail::call_function_or_module(function, std::forward<Inputs>(inputs)...);
    region.end({});
  } else {
    std::decay_t<Result> result = detail::call_function_or_module(function, std::forward<Inputs>(inputs)...);
    std::vector<at::Tensor> outputs;
    data::for_each_tensor(result, [&](at::Tensor& tensor) { outputs.push_back(tensor); });
    region.end(outputs);
    return result;
  }
}

}  // namespace tandem::nn
