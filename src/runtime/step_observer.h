// What training tells of its steps, and whom it asks whether it goes on.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace tandem::data {
struct EpochPosition;
}

namespace tandem {

/// Sees the steps of one rank, on its thread, and may have it stand still between them.
class StepObserver {
 public:
  virtual ~StepObserver() = default;

  /// Before a loader gives a batch. False: the epoch ends here.
  virtual bool before_batch(const data::EpochPosition& position) = 0;

  virtual void before_micro_batch() = 0;

  /// After a backward pass was asked for. `loss`: a mean over this rank's samples.
  virtual void after_backward(const at::Tensor& loss) = 0;

  /// After a window was closed.
  virtual void after_window() noexcept = 0;

  /// Whether training is to end, and the open window is closed.
  virtual bool stop_requested() const = 0;

  virtual void set_total_steps(std::int64_t steps) = 0;  ///< Accelerator::set_total_steps
  virtual void continue_at(std::int64_t step) = 0;       ///< after load_state: what was done before

  /// The rank has ended its part of join_uneven_inputs, and answers the others until `come_back`. Also: ranks have come
  /// to the same place from different steps.
  virtual void step_aside() = 0;
  virtual void come_back() = 0;
};

}  // namespace tandem
