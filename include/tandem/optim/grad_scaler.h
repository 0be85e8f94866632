#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// Options of a GradScaler, with the defaults of PyTorch's.
struct GradScalerOptions {
  double init_scale = 65536.0;          ///< the first scale; above 0
  double growth_factor = 2.0;           ///< of the scale, after growth_interval iterations; above 1
  double backoff_factor = 0.5;          ///< of the scale, after an iteration that overflowed; above 0, below 1
  std::int64_t growth_interval = 2000;  ///< iterations in a row without overflow; 1 or more
};

/// What a GradScaler knows, under the names of PyTorch's state_dict (where growth_tracker is `_growth_tracker`).
struct GradScalerState {
  double scale = 0;                  ///< that the next iteration begins with
  double growth_factor = 0;          ///< see GradScalerOptions
  double backoff_factor = 0;         ///< see GradScalerOptions
  std::int64_t growth_interval = 0;  ///< see GradScalerOptions
  std::int64_t growth_tracker = 0;   ///< iterations without overflow since the scale last changed

  bool operator==(const GradScalerState&) const = default;  ///< when all fields are equal
};

/// Loss scaling for float16, with the numbers of PyTorch's torch.amp.GradScaler: losses are multiplied by a scale, so
/// that small gradients do not vanish in float16; gradients are divided by it before the update; an update whose
/// gradients are not finite is skipped, and the scale adapts.
///
/// An accelerator has one under Precision::fp16, and its backward, clipping and prepared optimizers use it: programs
/// that prepare theirs need not call it. One iteration by hand:
///
///     scaler.scale(loss).backward();
///     scaler.step(optimizer);  // each of those that share the scaler
///     scaler.update();         // once
class GradScaler {
 public:
  /// Makes `found_inf` (0-dim float32, 0 or 1) the largest of all ranks.
  using Agree = std::function<void(at::Tensor& found_inf)>;

  /// The scale lives on `device`. With `agree`, step is collective, and what one rank found all ranks act on. Throws
  /// ConfigError that names an option out of range.
  explicit GradScaler(const GradScalerOptions& options, c10::Device device = c10::kCPU, Agree agree = {});

  /// Throws ConfigError that names an option out of range.
  static void check(const GradScalerOptions& options);

  /// `loss` times the scale.
  at::Tensor scale(const at::Tensor& loss) const;

  /// Divides the gradients of the optimizer's parameters by the scale, and looks for values that are not finite. Once
  /// an iteration: does nothing when they have been divided. Throws ConfigError for float16 gradients. Not collective.
  void unscale_(torch::optim::Optimizer& optimizer);

  /// Unscales, unless that is done, and calls `take_step` (without it, optimizer.step()) when all gradients are finite
  /// on all ranks. Returns whether it did. Waits for the device. Throws ConfigError when called twice for an optimizer
  /// in one iteration. Collective when made with `agree`.
  bool step(torch::optim::Optimizer& optimizer, const std::function<void()>& take_step);

  /// Unscales and steps likewise, by the optimizer's own step.
  bool step(torch::optim::Optimizer& optimizer);

  /// True from the first `rescale_kept` of an iteration on.
  bool has_rescaled() const { return has_rescaled_; }

  /// Brings gradients that the optimizers' parameters have kept from earlier iterations to the scale of this one,
  /// whether they were unscaled or not, so that what backward adds has the same. To be called before an iteration's
  /// first backward. Not collective.
  void rescale_kept(const std::vector<const torch::optim::Optimizer*>& optimizers);

  /// The gradients of `optimizer` were dropped without a step: those that follow are scaled anew.
  void gradients_dropped(const torch::optim::Optimizer& optimizer);

  /// Ends the iteration: adapts the scale to what its steps found. Throws ConfigError when there was none.
  void update();

  /// True between the first step of an iteration and its update.
  bool has_stepped() const;

  /// Ends the iteration if that is still to be done, and forgets what was unscaled without a step.
  void begin_iteration();

  /// What scale() multiplies by: until update(), that of this iteration. Waits for the device.
  double get_scale() const;

  /// The same, 0-dim on the device, where it changes with each update: to be logged without a wait, by
  /// comm::DeferredScalars.
  const at::Tensor& scale_on_device() const { return scale_; }

  /// Where the next iteration begins if this one ends here. Waits for the device.
  GradScalerState state() const;

  /// Begins an iteration where another scaler stood, with its options. Throws CheckpointError that names a value out of
  /// range.
  void load_state(const GradScalerState& state);

 private:
  // What happened to an optimizer in this iteration.
  struct Unscaled {
    const torch::optim::Optimizer* optimizer;
    at::Tensor found_inf;  // 0-dim float32
    bool stepped = false;
  };

  // What an optimizer's gradients were multiplied by when an iteration last had begun.
  struct Scaled {
    const torch::optim::Optimizer* optimizer;
    at::Tensor scale;  // 0-dim float32; undefined: they were unscaled since
  };

  Unscaled* find(const torch::optim::Optimizer& optimizer);
  void end_iteration();
  void adapt(at::Tensor& scale, at::Tensor& growth_tracker) const;

  GradScalerOptions options_;
  Agree agree_;
  at::Tensor scale_;           // 0-dim float32
  at::Tensor growth_tracker_;  // 0-dim int32
  std::vector<Unscaled> unscaled_;
  std::vector<Scaled> scaled_;
  bool has_rescaled_ = false;
};

}  // namespace tandem::optim
