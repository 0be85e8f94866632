// All that a node has of the other nodes: the store, the links, the watchman.
#pragma once

#include <functional>
#include <memory>

#include "comm/nodes/joining.h"
#include "comm/nodes/link.h"
#include "comm/nodes/tcp_store.h"
#include "comm/nodes/watchman.h"

namespace tandem::comm {

/// A node's connection with the others of its training, from when all have come until it ends. Collective over nodes,
/// as are its constructor and `leave`.
class NodeConnection {
 public:
  /// What this node brings: its ranks, GPUs, and the values that have to be alike; the rest of the card is found here.
  /// `on_failure` is called once, on another thread, when another node has failed; then the link is cancelled. `doing`
  /// is Watchman::Options'.
  ///
  /// Waits for all nodes: see join_nodes. Throws what that throws, ConfigError for a head that does not resolve or a
  /// port that is in use, and StoreError when somebody else listens there.
  NodeConnection(const Nodes& nodes, NodeCard mine, const JoinOptions& options,
                 std::function<void(const NodeFailure&)> on_failure, std::function<std::string()> doing = {});

  const JoinedNodes& joined() const { return joined_; }  ///< the nodes
  NodeLink& link() { return *link_; }                    ///< to the others
  Watchman& watchman() { return *watchman_; }            ///< who hears of failures

  /// Ends well: waits until what was sent has been taken, and with the store until the others have left too.
  void leave();

 private:
  void join(const Nodes& nodes, NodeCard& mine, const JoinOptions& options);
  void find_store(const Nodes& nodes, const JoinOptions& options);
  void connect_links(const Nodes& nodes);

  void await_end_of_store() const;

  std::string head_address_;
  const int port_;
  const bool waits_for_end_;  // of the store, which is node 0's
  std::unique_ptr<TcpStore> store_;
  JoinedNodes joined_;
  std::unique_ptr<NodeLink> link_;
  std::unique_ptr<Watchman> watchman_;
};

}  // namespace tandem::comm
