#pragma once

#include <exception>
#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/util/FunctionRef.h>

#include "comm/side_stream.h"
#include "data/step_source.h"

namespace tandem::data {

/// Copies a loader's batches to a GPU while the batch before is being computed with: through pinned memory (LibTorch's,
/// which is used again), on a stream of its own, one batch ahead. The host never waits for a copy. Belongs to one
/// thread.
class DeviceCopies {
 public:
  using Take = c10::function_ref<std::optional<RankStep>()>;  ///< gives steps as they were read; nothing at the end
  using Ready = c10::function_ref<bool()>;                    ///< whether taking one would not wait

  /// `pin`: through pinned memory. Without it the host waits while the driver copies, perhaps behind a collective.
  DeviceCopies(c10::Device device, bool pin) : device_(device), pin_(pin), stream_(device) {}

  /// The next step, its batch on the device for the current stream; nothing at the end. What `take` throws for a step
  /// comes out when that step's turn has come. Only when `ready()` is it asked for the step after: what this thread
  /// waits for may need what it does with this one.
  std::optional<RankStep> next(Take take, Ready ready);

  /// Forgets the batch that was copied ahead.
  void drop() { ahead_.reset(); }

 private:
  struct Copied {
    std::optional<RankStep> step;  // nothing: the end
    std::exception_ptr error;      // instead of a step
    std::optional<c10::Event> done;
  };

  void start(Take take);
  at::Tensor copy(const at::Tensor& tensor) const;

  const c10::Device device_;
  const bool pin_;
  comm::SideStream stream_;
  std::optional<Copied> ahead_;
};

}  // namespace tandem::data
