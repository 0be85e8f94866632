// Who looks whether the other nodes are alive, and passes on what has failed. Needs no LibTorch.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/nodes/joining.h"
#include "comm/nodes/key_store.h"

namespace tandem::comm {

/// What ended a training on several nodes.
struct NodeFailure {
  int node = -1;       ///< on which it happened; -1: none in particular
  std::string host{};  ///< of that node
  int rank = -1;       ///< of all nodes'; -1: none in particular
  std::string text{};  ///< what it says

  bool operator==(const NodeFailure&) const = default;
};

/// A failure as bytes for the store, and back. `node_failure_of` throws LinkError when the bytes are none.
std::string to_bytes(const NodeFailure& failure);
NodeFailure node_failure_of(const std::string& bytes);

/// The key at which the first failure of a generation is.
std::string failure_key(const std::string& prefix);

/// A node's watchman: a thread that says that the node is alive, several times within the time limit, and looks whether
/// the others are. Node 0 looks after all, and all after node 0 and the store. The first failure that is told, or seen,
/// is that of all nodes.
class Watchman {
 public:
  struct Options {
    int node = 0;               ///< this one
    JoinedNodes joined{};       ///< all of them
    bool serves_store = false;  ///< this node has the store, and leaves last
    int store_node = 0;         ///< the node that has the store; -1: the launcher
    /// Longest silence of a node. The store's calls must have a limit of at most two thirds of it.
    std::chrono::milliseconds silence = std::chrono::seconds(15);
    std::chrono::milliseconds beat = std::chrono::milliseconds(250);  ///< how often it looks
    /// What this node's ranks do, for `ask_others` of another one. Called on the watchman's thread, at every beat.
    std::function<std::string()> doing{};
    /// Called once, on the watchman's thread, when something has failed on another node. Must not wait for whoever
    /// calls `tell` or `leave`.
    std::function<void(const NodeFailure&)> on_failure{};
  };

  /// Begins to watch, by a connection to the store that is its own.
  Watchman(std::unique_ptr<KeyStore> store, Options options);

  /// Ends without a word: the others will miss this node unless it has told a failure, or left.
  ~Watchman();
  Watchman(const Watchman&) = delete;
  Watchman& operator=(const Watchman&) = delete;

  /// Tells all nodes that this one has failed, and returns what counts: the first failure that was told. One that may
  /// only follow from another (`consequence`), such as a broken link, waits a second for a better cause. Returns within
  /// the time limit, with `mine` where the store does not answer.
  NodeFailure tell(const NodeFailure& mine, bool consequence = false);

  /// What the ranks of the other nodes did at their last beat, by node; empty for this one, and where nobody says.
  /// Returns within the time limit.
  std::vector<std::string> ask_others();

  /// Tells that this node has ended, well or after a failure, and looks no more. Waits for the others, as long as the
  /// time limit, so that no link closes while somebody has yet to read from it; after a failure only the node that has
  /// the store does, for a second, since they have to read of it.
  void leave();

 private:
  struct Peer {
    std::string beats;  // as last seen
    std::chrono::steady_clock::time_point when{};
    bool left = false;
  };

  void run();
  void answer(std::unique_lock<std::mutex>& lock);
  void gather(std::unique_lock<std::mutex>& lock);
  void look();
  void look_after(int node, std::chrono::steady_clock::time_point now);
  NodeFailure store_failure(const std::string& what) const;
  void failed(const NodeFailure& failure);
  void stop();
  std::string key(const char* what, int node) const;

  const std::unique_ptr<KeyStore> store_;  // the watchman's thread's, until that has ended
  const Options options_;
  std::vector<Peer> peers_;  // by node, as is what follows
  std::chrono::steady_clock::time_point looked_{};

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  bool stopping_ = false;
  bool ended_ = false;                  // the thread looks no more
  std::optional<NodeFailure> to_tell_;  // what `tell` has for the thread
  std::optional<NodeFailure> failure_;  // what counts
  bool asked_ = false;                  // `ask_others` waits for the thread
  std::vector<std::string> answers_;    // for it
  bool store_works_ = true;
  std::thread thread_;
};

}  // namespace tandem::comm
