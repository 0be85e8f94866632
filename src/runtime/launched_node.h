// This process's part in a training on several nodes, from joining the others to leaving them.
#pragma once

#include <mutex>
#include <optional>

#include "comm/nodes/connection.h"
#include "comm/nodes/exchange.h"
#include "core/cancel_token.h"
#include "tandem/runtime/launch_config.h"

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

  /// When all is over here: leaves the others, and returns what has ended the training on another node; nothing where
  /// it ended well, or by what the token has.
  std::optional<comm::NodeFailure> leave();

 private:
  comm::NodeFailure failure_of(const std::exception_ptr& reason, int rank) const;
  void heard(const comm::NodeFailure& failure);

  std::mutex mutex_;  // guards both below
  CancelToken* token_ = nullptr;
  std::optional<comm::NodeFailure> failure_;  // of another node
  bool begun_ = false, left_ = false;
  std::optional<comm::NodeConnection> connection_;
  std::optional<comm::NodeExchange> exchange_;
};

}  // namespace tandem
