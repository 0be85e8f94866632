// What node 0 and the others send each other beside the ranks' calls, beneath RankGroup. Needs no LibTorch.
#pragma once

#include <compare>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "comm/nodes/exchange.h"
#include "comm/nodes/fields.h"
#include "core/cancel_token.h"

namespace tandem::comm {

/// What node 0 and the others send each other beside the ranks' calls, on threads and channels of its own.
///
/// *Queues* lead from node 0 to ranks of other nodes. A queue takes as many messages as its reader has said that it has
/// room for: what is under way never waits for a reader, so queues do not hold each other up.
///
/// *Claims* are what has to be the same on all nodes. They are compared when they have come, and nobody waits for that;
/// a claim that only some nodes make is compared with nothing.
///
/// An error fires the token.
class SideTraffic {
 public:
  /// A queue: of the `number`-th thing that has queues, to `rank`.
  struct Queue {
    std::uint64_t number = 0;
    int rank = 0;
    auto operator<=>(const Queue&) const = default;
  };

  /// Appends a message. Called on the sending thread.
  using Write = std::function<void(std::string& bytes)>;

  /// What is done with what comes, on the receiving thread. Must not wait.
  struct Reader {
    std::function<void(std::string_view message)> take;
    std::function<void()> end;  ///< no more messages come
  };

  /// Begins. `nodes`, of which there are several, and `token` outlive it; whoever fires the token cancels the links.
  /// All nodes begin one.
  SideTraffic(NodeExchange& nodes, CancelToken& token);

  /// When this node's ranks are done with it: waits until those of all nodes are, or the token has fired.
  ~SideTraffic();
  SideTraffic(const SideTraffic&) = delete;
  SideTraffic& operator=(const SideTraffic&) = delete;

  /// The next number of queues or claims: the same on all nodes, where one thread of each asks alike.
  std::uint64_t next_number() { return ++numbers_; }

  /// Node 0: how many messages the reader has room for.
  std::size_t room(const Queue& queue) const;

  /// Node 0: sends a message, when there is room for it. False, and nothing is sent, when the reader has closed. Throws
  /// Cancelled when the token fires.
  bool push(const Queue& queue, Write write);

  /// Node 0: sends no more.
  void end(const Queue& queue);

  /// Another node: `reader` gets what comes for its rank, and has room for that many messages.
  void open(const Queue& queue, std::size_t room, Reader reader);

  /// Another node: one message has been used, and there is room for one more.
  void taken(const Queue& queue);

  /// Another node: no more messages are wanted. When it returns, the reader is not called and will not be.
  void close(const Queue& queue) noexcept;

  /// Any node: `value` has to be the same on all nodes that claim `what`, which nobody does twice. Where it is another
  /// one than node 0's, the token fires with a DataError that has both.
  void claim(const std::string& what, const std::string& value);

 private:
  enum class Kind : std::uint8_t { message, end, farewell, room, closed, claim };
  struct Parcel {
    Kind kind;
    int peer;
    Queue queue;
    Write write;
  };
  struct Outlet {
    std::size_t room = 0;
    bool ended = false, closed = false;
  };
  struct Claim {
    std::optional<std::string> mine;
    std::vector<std::pair<int, std::string>> theirs;  // by nodes that have claimed it
    std::size_t compared = 0;
  };

  void begin(std::function<void()> work);
  void join();
  void send_parcels();
  std::optional<Parcel> next_parcel();
  void receive_receipts(int peer);
  void take_receipt(Kind kind, int peer, Fields& fields);
  void receive_parcels();
  void deliver(Kind kind, Fields& fields);
  void give_room(const Queue& queue, std::size_t messages);
  void send_receipt(const std::string& bytes);
  Queue read_queue(Fields& fields, int node) const;
  void compare(const std::string& what, int node, std::string value);

  NodeExchange& nodes_;
  CancelToken& token_;
  const NodePlace place_;
  std::uint64_t numbers_ = 0;

  // Node 0. Whoever holds it may not do anything that locks the token, whose callback takes it.
  mutable std::mutex mutex_;  // guards all that follows
  std::condition_variable changed_;
  std::deque<Parcel> parcels_;
  std::map<Queue, Outlet> outlets_;
  std::map<std::string, Claim> claims_;

  // Other nodes.
  std::mutex reading_;  // held while a reader is called; guards both below
  std::map<Queue, Reader> readers_;
  std::set<Queue> ended_;  // before they were opened
  std::mutex sending_;     // a receipt

  std::vector<std::thread> threads_;
  CancelToken::Subscription subscription_;
};

}  // namespace tandem::comm
