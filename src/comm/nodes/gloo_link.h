// Links between nodes over LibTorch's Gloo.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <c10/util/intrusive_ptr.h>

#include "comm/nodes/link.h"

namespace c10d {
class Store;
}

namespace tandem::comm {

/// How a node reaches the others.
struct GlooLinkOptions {
  std::string address{};                                               ///< of this node, at which it listens
  std::chrono::milliseconds connect_limit = std::chrono::seconds(30);  ///< until all nodes are connected
  std::vector<std::string> names{};                                    ///< of the nodes in messages, "node 1 (host b)"
};

/// Connects all nodes with each other; the address of each goes through `store`, which has to be the same for all and
/// for no others. Waits for all; nothing ends that but its limit and errors of the store. Throws LinkError.
///
/// Each message is in an envelope that tells what it is, and is checked: Gloo itself takes too short a message for a
/// whole one, and ends the process when it is too long, which none of ours can be.
std::unique_ptr<NodeLink> make_gloo_link(c10::intrusive_ptr<c10d::Store> store, int node, int nodes,
                                         const GlooLinkOptions& options);

}  // namespace tandem::comm
