// How nodes find each other, agree, and are told of what differs. Needs no LibTorch.
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "comm/nodes/key_store.h"
#include "comm/nodes/link.h"
#include "tandem/comm/nodes.h"

namespace tandem::comm {

/// Something that has to be the same on all nodes, such as a version.
struct NamedValue {
  std::string name, value;
  bool operator==(const NamedValue&) const = default;
};

/// What a node tells the others when it joins.
struct NodeCard {
  std::string host{};                ///< what it is called, for messages
  std::string host_id{};             ///< the same for all processes of one host, and for no others
  std::int64_t process = 0;          ///< its number there
  std::string address{};             ///< at which it listens: where its packets to the store come from, if not told
  int port = 0;                      ///< at which somebody listens while nodes join, to be tried; 0: nobody does
  std::string head_address{};        ///< at which it has reached the store
  int ranks = 1;                     ///< how many it has
  std::vector<std::string> gpus{};   ///< what tells each from others of the host; none for CPU ranks
  std::vector<NamedValue> values{};  ///< that have to be the same on all nodes, in an order that is the same

  bool operator==(const NodeCard&) const = default;
};

/// A card as bytes for the store, and back. `of` throws LinkError that names `node` when the bytes are no card.
std::string to_bytes(const NodeCard& card);
NodeCard node_card_of(const std::string& bytes, int node);

/// What nodes know when all have come.
struct JoinedNodes {
  std::string prefix;  ///< of the keys of this generation: one start of all nodes, of which a store may see several
  std::vector<NodeCard> cards;  ///< by node; addresses are such that all can reach them

  std::string name(int node) const;        ///< "node 1 (host b)"
  std::vector<int> ranks() const;          ///< by node
  std::vector<std::string> names() const;  ///< by node
};

/// What whoever joins hears meanwhile.
struct JoinOptions {
  /// Called about once a second on the calling thread: "waiting for node 2 of 3 (host b): 40 s of 10 min".
  std::function<void(const std::string&)> progress{};
  std::stop_token stop{};  ///< gives up, with Cancelled
};

/// The store went away before this node had a place in it: that of an earlier start, whose node 0 has left.
class EarlierStoreError : public StoreError {
 public:
  using StoreError::StoreError;
};

/// Waits for all nodes, compares what they tell, and tries whether each reaches all others. Collective over nodes.
/// Throws ConfigError, with the same text on all nodes, when values differ, two nodes would share a GPU, or an address
/// is one that others cannot reach; CollectiveError when a node does not come within nodes.join_timeout, there are two
/// of one number, one cannot reach another, or another node has failed or is no more; Cancelled; StoreError.
JoinedNodes join_nodes(KeyStore& store, const Nodes& nodes, const NodeCard& mine, const JoinOptions& options = {});

/// Tells that `node` needs the store no more. Who serves it waits for the others' word first, but for the node
/// `without` and no longer than `limit`.
void leave_store(KeyStore& store, const std::string& prefix, int node, int nodes, bool waits,
                 std::chrono::milliseconds limit, int without = -1);

/// The key by which `leave_store` tells it.
std::string left_key(const std::string& prefix, int node);

/// What keeps nodes with these cards from training together; empty: nothing. Replaces addresses that only the node's
/// own host understands by those at which the others have reached that host.
std::string settle(std::vector<NodeCard>& cards);

/// Sends a message to each other node and waits for theirs. Collective over nodes. Throws LinkError that names the node
/// to which a link does not work, or that is of another start.
void try_links(NodeLink& link, const JoinedNodes& joined);

/// A time as messages have it: "40 s", "10 min".
std::string to_text(std::chrono::milliseconds time);

}  // namespace tandem::comm
