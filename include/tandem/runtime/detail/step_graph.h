#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem {

/// What Accelerator::compile_step is asked for beside the step.
struct CompileStepOptions {
  /// Called steps are measured beside replayed ones, and what is faster is kept; see CompiledStep.
  bool keep_faster = false;
};

/// How long a step takes with its device's work, in seconds: the median of several, of the slowest rank.
struct StepTimes {
  double called;    ///< a call of the step
  double replayed;  ///< a replay of its graphs
  bool replays;     ///< what was kept
};

}  // namespace tandem

namespace tandem::detail {

/// Decides what each call of a compiled step does on this rank: the first ones call the step, one records it, and the
/// later ones replay that, where all ranks can.
class StepGraph {
 public:
  virtual ~StepGraph() = default;

  /// What a call does with the step.
  enum class Turn : std::uint8_t { call, rehearse, record, replay };

  /// What is to be done with a step of these arguments. Collective.
  virtual Turn next(const std::vector<at::Tensor>& inputs) = 0;

  /// Calls `step` in the form in which it can be recorded.
  virtual void rehearse(const std::function<void()>& step) = 0;

  using MakeInputs = std::function<std::vector<at::Tensor>()>;  ///< copies of a call's tensors, to be kept

  /// Calls `step` and records what it has the device do, which is not done then; returns true if that worked on all
  /// ranks. Otherwise it gives up for good; gradients, the device's generators and what prepared objects count are as
  /// before. Collective.
  virtual bool record(const MakeInputs& make_inputs, const std::function<void()>& step) = 0;

  /// Does what was recorded, with the values of `inputs`. Collective.
  virtual void replay(const std::vector<at::Tensor>& inputs) = 0;

  /// Why the last call was not replayed, when it might have been; empty otherwise.
  virtual const std::string& reason() const = 0;

  /// The tensors that were recorded with.
  virtual const std::vector<at::Tensor>& inputs() const = 0;

  /// Calls replayed so far.
  virtual std::int64_t replays() const = 0;

  /// What was measured for CompileStepOptions::keep_faster; nothing before it is known, and without it.
  virtual const std::optional<StepTimes>& times() const = 0;
};

}  // namespace tandem::detail
