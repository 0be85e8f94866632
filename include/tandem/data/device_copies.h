#pragma once

#include <exception>
#include <optional>
#include <utility>

#include <c10/core/StreamGuard.h>

#include "tandem/comm/side_stream.h"
#include "tandem/data/batch.h"
#include "tandem/data/epoch_steps.h"

namespace tandem::data {

/// Copies a loader's batches to a GPU while the batch before is being computed with: through pinned memory (LibTorch's,
/// which is used again), on a stream of its own, one batch ahead. The host never waits for a copy. Belongs to one
/// thread.
template <class Batch>
class DeviceCopies {
 public:
  using Step = std::optional<std::pair<StepInfo, Batch>>;  ///< nothing at the end of the epoch

  /// `pin`: through pinned memory. Without it the host waits while the driver copies, perhaps behind a collective.
  DeviceCopies(c10::Device device, bool pin) : device_(device), pin_(pin), stream_(device) {}

  /// The next step, its batch on the device for the current stream; nothing at the end. `take` gives steps as they were
  /// read; what it throws for a step comes out when that step's turn has come. Only when `ready()` is it asked for the
  /// step after: what this thread waits for may need what it does with this one.
  template <class Take, class Ready>
  Step next(const Take& take, const Ready& ready) {
    if (!ahead_) start(take);
    Copied mine = *std::exchange(ahead_, std::nullopt);
    if (mine.error) std::rethrow_exception(mine.error);
    if (!mine.step) return std::nullopt;
    if (!mine.step->first.last && ready()) start(take);
    // The memory belongs to the copies' stream: who frees it must know that this one still uses it.
    const c10::Stream compute = stream_.compute();
    for_each_tensor(mine.step->second, [&](at::Tensor& tensor) {
      if (tensor.device() == device_) tensor.record_stream(compute);
    });
    stream_.let_compute_follow(std::move(*mine.done));
    return std::move(mine.step);
  }

  /// Forgets the batch that was copied ahead.
  void drop() { ahead_.reset(); }

 private:
  struct Copied {
    Step step;                 // nothing: the end
    std::exception_ptr error;  // instead of a step
    std::optional<c10::Event> done;
  };

  template <class Take>
  void start(const Take& take) {
    Copied& next = ahead_.emplace();
    try {
      next.step = take();
      if (!next.step) return;
      const c10::StreamGuard on(stream_.stream());
      next.step->second = data::map_tensors(std::move(next.step->second), [&](const at::Tensor& t) { return copy(t); });
      next.done = stream_.mark();
    } catch (...) {
      next.error = std::current_exception();
    }
  }

  at::Tensor copy(const at::Tensor& tensor) const {
    const bool pins = pin_ && tensor.is_cpu() && tensor.layout() == at::kStrided && tensor.numel() > 0;
    return (pins ? tensor.pin_memory() : tensor).to(device_, /*non_blocking=*/true);
  }

  const c10::Device device_;
  const bool pin_;
  comm::SideStream stream_;
  std::optional<Copied> ahead_;
};

}  // namespace tandem::data
