#pragma once

#include <c10/core/Stream.h>

namespace tandem::comm {

/// A stream of a device that nobody else has meanwhile. Those of earlier launches are lent again: LibTorch's allocator
/// and cuBLAS keep memory for each stream that was ever used.
class StreamLease {
 public:
  /// `priority`: as of c10's streams; lower comes first.
  StreamLease(c10::Device device, int priority);
  ~StreamLease();
  StreamLease(const StreamLease&) = delete;
  StreamLease& operator=(const StreamLease&) = delete;

  const c10::Stream& stream() const { return stream_; }  ///< the stream that is lent

 private:
  const int priority_;
  const c10::Stream stream_;
};

}  // namespace tandem::comm
