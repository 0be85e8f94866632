#include "comm/stream_lease.h"

#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include <c10/core/impl/VirtualGuardImpl.h>

namespace tandem::comm {
namespace {

// Streams that are not lent, by device and priority. LibTorch's live as long as the process.
struct Spare {
  using Key = std::tuple<c10::DeviceType, c10::DeviceIndex, int>;
  std::mutex mutex;
  std::map<Key, std::vector<c10::Stream>> streams;

  std::vector<c10::Stream>& of(c10::Device device, int priority) {
    return streams[{device.type(), device.index(), priority}];
  }
};

Spare& spare() {
  static Spare& spare = *new Spare;  // threads may end after static destructors
  return spare;
}

c10::Stream take(c10::Device device, int priority) {
  const std::lock_guard lock(spare().mutex);
  auto& streams = spare().of(device, priority);
  if (streams.empty()) return c10::impl::VirtualGuardImpl(device.type()).getNewStream(device, priority);
  const c10::Stream stream = streams.back();
  streams.pop_back();
  return stream;
}

}  // namespace

StreamLease::StreamLease(c10::Device device, int priority) : priority_(priority), stream_(take(device, priority)) {}

StreamLease::~StreamLease() {
  const std::lock_guard lock(spare().mutex);
  spare().of(stream_.device(), priority_).push_back(stream_);
}

}  // namespace tandem::comm
