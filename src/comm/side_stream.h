// A stream beside the one that a rank computes on.
#pragma once

#include <utility>
#include <vector>

#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "comm/stream_lease.h"

namespace tandem::comm {

/// A stream of a rank's for communication or copies, and the order between it and the calling thread's current stream,
/// which computes.
class SideStream {
 public:
  /// Takes a stream of high priority on `device`, a GPU.
  explicit SideStream(c10::Device device) : guard_(device.type()), device_(device), lease_(device, /*priority=*/-1) {}

  c10::Stream stream() const { return lease_.stream(); }             ///< the stream beside
  c10::Stream compute() const { return guard_.getStream(device_); }  ///< the calling thread's current one

  /// What is enqueued here from now on comes after all that the compute stream has.
  void follow_compute() {
    c10::Event event = record(compute());
    event.block(stream());
    give_back(std::move(event));
  }

  /// Blocks the calling thread until all that is enqueued here is done.
  void synchronize() const { guard_.synchronizeStream(stream()); }

  /// A mark after all that is enqueued here.
  c10::Event mark() { return record(stream()); }

  /// What is enqueued on the compute stream from now on comes after `mark`, which may be used again.
  void let_compute_follow(c10::Event mark) {
    mark.block(compute());
    give_back(std::move(mark));
  }

 private:
  // Events are made once: making one may wait for the device.
  c10::Event record(c10::Stream stream) {
    if (spare_.empty()) spare_.emplace_back(device_.type());
    c10::Event event = std::move(spare_.back());
    spare_.pop_back();
    event.record(stream);
    return event;
  }

  void give_back(c10::Event event) { spare_.push_back(std::move(event)); }

  const c10::impl::VirtualGuardImpl guard_;
  const c10::Device device_;
  const StreamLease lease_;
  std::vector<c10::Event> spare_;
};

}  // namespace tandem::comm
