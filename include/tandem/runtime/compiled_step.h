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
#include "tandem/runtime/step_graph.h"

namespace tandem {

/// What Accelerator::compile_step returns: called like the step, with batches (see data/batch.h) whose tensors are on
/// the rank's device. Belongs to the rank's thread.
template <class Step>
class CompiledStep {
 public:
  /// As Accelerator::compile_step makes it.
  CompiledStep(std::unique_ptr<StepGraph> graph, Step step) : graph_(std::move(graph)), step_(std::move(step)) {}

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

 private:
  template <class Call, class... Batch>
  auto run(const Call& call, const Batch&... batch) {
    using Result = std::invoke_result_t<const Call&, const Batch&...>;
    std::tuple<Batch...> mine(batch...);
    const auto inputs = tensors_in(mine);
    switch (graph_->next(inputs)) {
      case StepGraph::Turn::call: break;
      case StepGraph::Turn::rehearse: {
        std::optional<Result> result;
        graph_->rehearse([&] { result.emplace(call(batch...)); });
        return std::move(*result);
      }
      case StepGraph::Turn::record:
        if (!record<Result>(call, mine)) break;
        return replay<Result>(graph_->inputs());
      case StepGraph::Turn::replay: return replay<Result>(inputs);
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

  std::unique_ptr<StepGraph> graph_;
  Step step_;
  std::any result_;  // of the recorded call
};

}  // namespace tandem
