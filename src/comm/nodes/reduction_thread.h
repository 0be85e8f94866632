// The thread that reduces over nodes what their ranks have started.
#pragma once

#include <functional>
#include <thread>

#include "comm/nodes/chain.h"
#include "comm/nodes/exchange.h"
#include "comm/posted_calls.h"
#include "core/cancel_token.h"

namespace tandem::comm {

/// Takes reductions that all ranks of this node have started (see SharedReducer::start) through all nodes, one after
/// the other and beside whatever the ranks do meanwhile. Ends when the ranks have departed, on all nodes, or the token
/// fires; an error fires it.
class ReductionThread {
 public:
  /// Begins. `nodes`, of which there are several, `calls` and `token` outlive it.
  ReductionThread(NodeExchange& nodes, PostedCalls& calls, CancelToken& token);

  /// Waits for its end: all ranks have departed, or the token has fired.
  ~ReductionThread();
  ReductionThread(const ReductionThread&) = delete;
  ReductionThread& operator=(const ReductionThread&) = delete;

 private:
  void run();
  void reduce(std::uint64_t number, const CallRecord& record, std::span<const void* const> payloads);
  void say_farewell();

  NodeExchange& nodes_;
  PostedCalls& calls_;
  CancelToken& token_;
  NodeChain chain_;
  RecordTexts texts_;
  std::thread thread_;
};

}  // namespace tandem::comm
