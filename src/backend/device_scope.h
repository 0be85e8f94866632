// What a thread that computes on a device has for itself there.
#pragma once

#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "comm/stream_lease.h"

namespace tandem {

/// Waits until everything that the calling thread has enqueued on `device` is done. Nothing for the CPU.
inline void synchronize(c10::Device device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeStream(guard.getStream(device));
}

/// While alive, the calling thread is on `device`, and computes on a stream of its own there: ranks that share a device
/// would otherwise wait for each other. It comes after what the device's default stream had before.
class DeviceScope {
 public:
  explicit DeviceScope(c10::Device device)
      : guard_(device.type()), on_device_(device), lease_(device, /*priority=*/0), on_stream_(lease_.stream()) {
    c10::Event before(device.type());
    before.record(guard_.getDefaultStream(device));
    before.block(lease_.stream());
  }

  /// Waits until everything on the stream is done. Throws what went wrong there.
  void synchronize() const { guard_.synchronizeStream(lease_.stream()); }

 private:
  const c10::impl::VirtualGuardImpl guard_;
  const c10::DeviceGuard on_device_;
  const comm::StreamLease lease_;
  const c10::StreamGuard on_stream_;
};

}  // namespace tandem
