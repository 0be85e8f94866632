// What the ranks of nodes wait for together, beneath RankGroup: bytes of any length, rows of elements, reductions.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/nodes/link.h"

namespace tandem::comm {

class NodeChain;

/// Where the ranks of a process lie among those of all nodes.
struct NodePlace {
  int node = 0;         ///< this process
  int nodes = 1;        ///< how many there are
  int first_rank = 0;   ///< the first of this process's ranks
  int local_ranks = 1;  ///< how many it has
  int world_size = 1;   ///< ranks of all nodes

  int end_rank() const { return first_rank + local_ranks; }      ///< behind the last of this process's
  bool some_share_memory() const { return world_size > nodes; }  ///< whether a process has several; same on all
};

/// A node's exchanges with all others, which all make the same ones in the same order. One thread at a time; throws
/// what NodeLink throws, and LinkError that names the node whose message is not what is expected.
class NodeExchange {
 public:
  /// Over the nodes of `link`, which outlives it, with `ranks_of_nodes` ranks each.
  NodeExchange(NodeLink& link, std::vector<int> ranks_of_nodes);
  ~NodeExchange();
  NodeExchange(const NodeExchange&) = delete;
  NodeExchange& operator=(const NodeExchange&) = delete;

  const NodePlace& place() const noexcept { return place_; }                           ///< this node's
  NodeLink& link() noexcept { return link_; }                                          ///< to the others
  const std::vector<int>& ranks_of_nodes() const noexcept { return ranks_of_nodes_; }  ///< by node
  int first_rank_of(int node) const;                                                   ///< of all nodes' ranks
  int node_of(int rank) const;                                                         ///< that has `rank`

  /// Sends message n of `to` to node n, and returns theirs to this one, by node; its own comes back as it is.
  std::vector<std::string> exchange(std::span<const std::string_view> to);

  /// Sends `message` to all, and returns everybody's, by node.
  std::vector<std::string> exchange_all(std::string_view message);

  /// Overwrites `rows`, of the same lengths on all nodes, with those of node `root`.
  void broadcast(int root, std::span<const std::span<std::byte>> rows);

  /// Reductions over all nodes, by channels of their own.
  NodeChain& chain() noexcept { return *chain_; }

 private:
  NodeLink& link_;
  const std::vector<int> ranks_of_nodes_;
  NodePlace place_;
  std::unique_ptr<NodeChain> chain_;
};

}  // namespace tandem::comm
