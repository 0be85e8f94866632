// What LibTorch's header of its Gloo needs of Gloo's own, which LibTorch does not come with. Only names and signatures:
// everything is in LibTorch's library, and nothing of it may be constructed by us.
#pragma once

#include <chrono>

namespace gloo::transport {
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};
}  // namespace gloo::transport

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
