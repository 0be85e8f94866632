// This process's part in a training on several nodes, from joining the others to leaving them.
#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "comm/nodes/connection.h"
#include "comm/nodes/exchange.h"
#include "core/cancel_token.h"
#include "tandem/runtime/launch_config.h"

namespace tandem::comm {
class RankGroup;
}  // namespace tandem::comm

namespace tandem {

/// The connection to the other nodes of a training, of which one launch is made. What fails on another node fires that
/// launch's token, and what fires it is told to the others.
class LaunchedNode {
 public:
  /// Waits for all nodes. `state` is what this one brings. Collective over nodes. Throws what NodeConnection throws.
  explicit LaunchedNode(const AcceleratorState& state);

  /// Tells the others that this process ended, unless it has left.
  ~LaunchedNode();
  LaunchedNode(const LaunchedNode&) = delete;
  LaunchedNode& operator=(const LaunchedNode&) = delete;

  comm::NodeExchange& exchange() { return *exchange_; }  ///< beneath the launch's RankGroup

  /// From now on `token`, which outlives `leave`, fires when another node fails, or has failed. Throws ConfigError when
  /// there has been a launch.
  void begin(CancelToken& token);

  /// While it lives, the other nodes may ask what the ranks of `group` do, which outlives it.
  class Shown {
   public:
    Shown(LaunchedNode& node, const comm::RankGroup& group) : node_(node) { node_.show(&group); }
    ~Shown() { node_.show(nullptr); }
    Shown(const Shown&) = delete;
    Shown& operator=(const Shown&) = delete;

   private:
    LaunchedNode& node_;
  };

  /// What the ranks of the other nodes do, as lines for people, and one of them that does not wait for others; -1: they
  /// all do, as far as they say.
  std::pair<std::string, int> ask_others();

  /// When all is over here: leaves the others, and returns what has ended the training on another node; nothing where
  /// it ended well, or by what the token has.
  std::optional<comm::NodeFailure> leave();

 private:
  comm::NodeFailure failure_of(const std::exception_ptr& reason, int rank) const;
  void heard(const comm::NodeFailure& failure);
  std::string doing();
  void show(const comm::RankGroup* group);

  std::mutex mutex_;  // guards the three below
  const comm::RankGroup* group_ = nullptr;
  CancelToken* token_ = nullptr;
  std::optional<comm::NodeFailure> failure_;  // of another node
  bool begun_ = false, left_ = false;
  std::optional<comm::NodeConnection> connection_;
  std::optional<comm::NodeExchange> exchange_;
};

}  // namespace tandem
