// This process's part in a launch over several nodes, from joining the others to leaving them.
#pragma once

#include <exception>
#include <optional>
#include <string>

#include "comm/nodes/connection.h"
#include "comm/nodes/exchange.h"
#include "core/cancel_token.h"
#include "tandem/runtime/launch_config.h"

namespace tandem {

/// The connection to the other nodes of a launch. What fails there fires the token here, and the other way round.
class LaunchedNode {
 public:
  /// Waits for all nodes, and tells `state` how many ranks each has. Collective over nodes. Throws what NodeConnection
  /// throws. `token` outlives it.
  LaunchedNode(AcceleratorState& state, CancelToken& token);

  comm::NodeExchange& exchange() { return *exchange_; }  ///< beneath this launch's RankGroup

  /// When all is over here: leaves the others, and returns what has ended the training on another node; nothing where
  /// it ended well, or by what the token has.
  std::optional<comm::NodeFailure> leave();

 private:
  comm::NodeFailure failure_of(const std::exception_ptr& reason, int rank) const;

  CancelToken& token_;
  std::optional<comm::NodeConnection> connection_;
  std::optional<comm::NodeExchange> exchange_;
};

}  // namespace tandem
