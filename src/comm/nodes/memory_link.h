// Links between nodes that are threads of one process, for tests: under ThreadSanitizer too.
#pragma once

#include <memory>

#include "comm/nodes/link.h"

namespace tandem::comm {

/// Nodes that are in one process.
class MemoryNetwork {
 public:
  /// With `nodes` of them, none of which has a link.
  explicit MemoryNetwork(int nodes);
  ~MemoryNetwork();

  /// The end of `node`, once for each node. The network outlives it. When it is destroyed the others see that the node
  /// has gone.
  std::unique_ptr<NodeLink> link(int node);

 private:
  class Link;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tandem::comm
