#pragma once

#include <any>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tandem/core/error.h"
#include "tandem/data/batch.h"
#include "tandem/runtime/detail/step_graph.h"

namespace tandem {

/// A training step that is called like the function it was made of, and does what that does: what
/// Accelerator::compile_step returns. Batches are given as in data/batch.h, with their tensors on the rank's device.
///
/// On GPUs it calls the step three times, then has the device record what a call enqueues, as CUDA graphs, and from
/// then on replays that for batches of the same sizes, without the host's work of launching each kernel: worth it where
/// the host is slower than the GPU. With several ranks the gradients are reduced after backward, not during it. All
/// ranks replay a call, or none does.
///
///     auto step = accelerator.compile_step([&](const at::Tensor& images, const at::Tensor& labels) {
///       auto window = accelerator.accumulate(model);
///       auto loss = torch::nn::functional::cross_entropy(model(images), labels);
///       accelerator.backward(loss);
///       optimizer.step();
///       optimizer.zero_grad();
///       return loss.detach();
///     });
///     for (auto& [images, labels] : batches) {
///       auto loss = step(images, labels);
///       scheduler.step();
///     }
///
/// Of a step that is replayed only the device's work is done, accumulate(), what prepared optimizers and schedulers
/// count, and learning rates: other host code is not called (an ExponentialMovingAverage's
/// update() belongs outside), and numbers, train() or eval(), autocast() and guards are those of the recorded call.
/// Tensors from outside that the step uses must stay, and be changed in place. Results that stay on the device, such
/// as a running loss, are best returned. Parameters, gradients and optimizers may be changed between calls: what a
/// replay would not notice has the step recorded anew. Graphs have memory of their own, about as much as a step
/// needs.
///
/// With CompileStepOptions::keep_faster it calls ten steps more and replays ten, each from the end of the device's work
/// before it to the end of its own, and goes on with what takes less time: replays, if that saves a twentieth at least.
/// Nothing is recorded where the memory that is left on the device is not twice what a step takes, or where replayed
/// steps might give other bits than called ones: with more than two ranks whose gradients NCCL sums, in an order of its
/// own. So results do not depend on what was measured.
///
/// A step that looks at a result (item(), a condition) or asks other ranks for anything but the reduction of
/// gradients cannot be recorded. Then, and for batches of other sizes, it is called; reason() says why.
/// Steps are called always on CPU ranks, with accumulation over several micro-batches, under fp16, with divided
/// updates, optimizers of float64 parameters (a graph holds learning rates in float32, as fused steps on GPUs do),
/// communication hooks or check_finite, and within join_uneven_inputs, local_sgd and no_sync. It
/// belongs to its rank's thread and does not outlive the accelerator.
template <class Step>
class CompiledStep {
 public:
  /// As Accelerator::compile_step makes it.
  CompiledStep(std::unique_ptr<detail::StepGraph> graph, Step step)
      : graph_(std::move(graph)), step_(std::move(step)) {}

  /// Does what the step does with `batch`, and returns what it returns; tensors in that are copies. Collective.
  template <class... Batch>
  auto operator()(const Batch&... batch) {
    using Result = std::invoke_result_t<Step&, const Batch&...>;
    static_assert((!std::is_arithmetic_v<Batch> && ...),
                  "a number would be that of the recorded call for ever; give it as a tensor on the device");
    if constexpr (std::is_void_v<Result>) {
      run([this](const Batch&... b) { return step_(b...), nullptr; }, batch...);
    } else {
      static_assert(std::is_same_v<Result, std::decay_t<Result>>, "a compiled step returns values, not references");
      return run([this](const Batch&... b) { return step_(b...); }, batch...);
    }
  }

  /// Why the last call called the step instead of replaying it; empty when it was replayed, and before there was
  /// anything to replay.
  const std::string& reason() const { return graph_->reason(); }

  /// Calls that were replayed so far.
  std::int64_t replays() const { return graph_->replays(); }

  /// With CompileStepOptions::keep_faster what was measured, once that is known: the same on all ranks.
  const std::optional<StepTimes>& times() const { return graph_->times(); }

 private:
  template <class Call, class... Batch>
  auto run(const Call& call, const Batch&... batch) {
    using Result = std::invoke_result_t<const Call&, const Batch&...>;
    std::tuple<Batch...> mine(batch...);
    const auto inputs = tensors_in(mine);
    switch (graph_->next(inputs)) {
      case detail::StepGraph::Turn::call: break;
      case detail::StepGraph::Turn::rehearse: {
        std::optional<Result> result;
        graph_->rehearse([&] { result.emplace(call(batch...)); });
        return std::move(*result);
      }
      case detail::StepGraph::Turn::record:
        if (!record<Result>(call, mine)) break;
        return replay<Result>(graph_->inputs());
      case detail::StepGraph::Turn::replay: return replay<Result>(inputs);
    }
    return call(batch...);
  }

  template <class Result, class Call, class... Batch>
  bool record(const Call& call, const std::tuple<Batch...>& batch) {
    result_.reset();
    std::tuple<Batch...> kept;  // memory that stays: each replay's batch is copied there
    const auto keep = [&] {
      kept = data::map_tensors(batch, [](const at::Tensor& tensor) { return tensor.detach().clone(); });
      return tensors_in(kept);
    };
    const bool recorded = graph_->record(keep, [&] { result_ = std::apply(call, std::as_const(kept)); });
    if (!recorded) result_.reset();
    return recorded;
  }

  // Results are copies: the next replay overwrites what was recorded.
  template <class Result>
  Result replay(const std::vector<at::Tensor>& inputs) {
    const auto* result = std::any_cast<Result>(&result_);
    if (!result) throw ConfigError("a compiled step was called with other types than before; compile one for each");
    graph_->replay(inputs);
    return data::map_tensors(*result, [](const at::Tensor& tensor) { return tensor.clone(); });
  }

  template <class Value>
  static std::vector<at::Tensor> tensors_in(Value& value) {
    std::vector<at::Tensor> tensors;
    data::for_each_tensor(value, [&](at::Tensor& tensor) { tensors.push_back(tensor); });
    return tensors;
  }

  std::unique_ptr<detail::StepGraph> graph_;
  Step step_;
  std::any result_;  // of the recorded call
};

}  // namespace tandem
