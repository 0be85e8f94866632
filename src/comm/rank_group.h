#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/call_record.h"
#include "comm/nodes/exchange.h"
#include "comm/posted_calls.h"
#include "core/bell.h"
#include "core/cancel_token.h"
#include "core/rendezvous.h"

namespace tandem::comm {

class SideTraffic;

/// What ranks have said, by rank, in memory that the ranks of a node share.
class GatheredBytes {
 public:
  /// Of nobody.
  GatheredBytes() = default;

  /// Of all.
  explicit GatheredBytes(std::vector<std::string> all)
      : all_(std::make_shared<const std::vector<std::string>>(std::move(all))) {}

  std::size_t size() const { return all_->size(); }                                ///< ranks
  const std::string& operator[](std::size_t rank) const { return (*all_)[rank]; }  ///< what it has said
  auto begin() const { return all_->begin(); }                                     ///< of the first rank
  auto end() const { return all_->end(); }                                         ///< behind the last one

 private:
  std::shared_ptr<const std::vector<std::string>> all_;
};

/// The ranks of one launch, as far as they wait for each other: the meeting point of every collective, with the check
/// that all ranks make the same calls, and the record of what each rank is doing.
///
/// All backends use it, whatever moves their data. Every member takes the calling rank, of all nodes'.
///
/// With several nodes the last rank of a node to come to an exchange of mail carries what all of them have written,
/// with the records of their calls, to the other nodes, and what theirs have to these. Pointers stay within a node.
class RankGroup {
 public:
  /// A group of `world_size` ranks that gives up waiting when `token` fires.
  RankGroup(int world_size, CancelToken& token);

  /// The ranks of all nodes, of which this process has those of `nodes.place()`; outlives it, as does `token`, which
  /// cancels the links when it fires. With one node as above. `carries_posted`: a ReductionThread takes what is posted
  /// to the other nodes; otherwise something else does, and each rank does its own part.
  RankGroup(NodeExchange& nodes, CancelToken& token, bool carries_posted = true);
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  int world_size() const noexcept { return place_.world_size; }  ///< how many ranks there are, on all nodes
  const NodePlace& place() const noexcept { return place_; }     ///< those of this process
  CancelToken& token() noexcept { return token_; }               ///< what ends the waits of its ranks

  /// One call of the ranks of a node, from the moment all have come to the moment all are done with each other's
  /// payloads.
  class Call {
   public:
    /// Waits for all ranks of this node. `payload` may be read by these until the destructor returns. Collective.
    ///
    /// Throws CollectiveError when another rank's call of the same number is a different one (without waiting for the
    /// others), or when a rank has returned from its body; Cancelled when the token fires. It throws on all ranks or on
    /// none: once it has returned, every rank's payload is there until every rank has ended its Call.
    Call(RankGroup& group, int rank, const CallRecord& record, const void* payload);

    /// Waits until all ranks end the call; this cannot be cancelled, since the others may be reading our payload.
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    /// The payload of a `rank` of this node, of the type that all ranks gave.
    template <class T>
    const T& payload(int rank) const {
      return *static_cast<const T*>(object(rank));
    }

    /// Where that of `rank` is.
    const void* object(int rank) const { return payloads_[static_cast<std::size_t>(rank - group_.place_.first_rank)]; }

   private:
    RankGroup& group_;
    int rank_;
    std::span<void* const> payloads_;
  };

  /// Bytes that a rank can send by mail. The group has the memory, so ranks wait for each other once, not twice as in a
  /// Call.
  static constexpr std::size_t kMailBytes = 4 * 1024;

  /// Where `rank` writes what it sends with its next `exchange_mail`: kMailBytes, aligned to a cache line.
  std::byte* outbox(int rank) noexcept;

  /// Waits until the mail of all ranks is there, of which `rank` has written so many bytes. Collective. Throws
  /// CollectiveError like `Call`, and Cancelled when the token fires, but then perhaps not on all ranks: the mail stays
  /// where it is. LinkError when another node cannot be reached.
  void exchange_mail(int rank, const CallRecord& record, std::size_t bytes = kMailBytes);

  /// `peer`'s mail of the last exchange, valid until the next call of `rank`.
  const std::byte* mail(int rank, int peer) const noexcept;

  /// A call that exchanges one small number a rank and nothing else: returns everyone's, by rank, valid until this
  /// rank's next call. Collective; throws like `exchange_mail`.
  std::span<const std::uint64_t> meet(int rank, const CallRecord& record, std::uint64_t value = 0);

  /// What each rank of all nodes says, by rank: any number of bytes. Collective; throws like `exchange_mail`.
  GatheredBytes gather_bytes(int rank, const CallRecord& record, const std::string& mine);

  /// A call in which one rank of each node does something with other nodes on behalf of all its ranks: `work` is called
  /// on the first one with the Call, whose payloads are those of the node's ranks. Returns when that has been done.
  /// Collective over all nodes, which have compared the records before. Throws like `exchange_mail`; what `work` throws
  /// ends the launch, and all get Cancelled.
  void carry(int rank, const CallRecord& record, const void* payload,
             const std::function<void(const Call&, NodeExchange&)>& work);

  /// The calls that nobody waits for when they are made.
  PostedCalls& posted() noexcept { return posted_; }

  /// What nodes send each other beside calls. There are several; the first rank of each calls it alike, and the first
  /// such call begins it.
  SideTraffic& side_traffic();

  /// While forbidden, `rank`'s calls throw ConfigError: the step that it records would have to wait in each replay.
  void forbid_calls(int rank, bool forbidden) noexcept;

  /// Tells the others that `rank` makes no more calls. Whoever waits for it, or will, gets a CollectiveError. With
  /// several nodes the last rank of each waits here for those of all others.
  void depart(int rank);

  /// While alive, reports `rank` as waiting for `what` (a string literal), and lets the time limit apply to it.
  class WaitScope {
   public:
    /// Begins the wait, as far as reports and the time limit are concerned.
    WaitScope(RankGroup& group, int rank, const char* what);
    ~WaitScope();
    WaitScope(const WaitScope&) = delete;
    WaitScope& operator=(const WaitScope&) = delete;

   private:
    RankGroup& group_;
    int rank_;
  };

  /// A rank that others have been waiting for longer than `limit`, if there is one.
  std::optional<int> overdue(std::chrono::nanoseconds limit) const;

  /// Whether `rank` has been waiting for others for more than the shortest time. Any thread.
  bool waits(int rank) const noexcept;

  /// Lets the time limit of those who wait begin anew. Any thread.
  void forgive_waits() noexcept;

  /// One line a rank: what it does, since when, and the last call it made.
  std::string report() const;

 private:
  struct Rank;

  RankGroup(const NodePlace& place, NodeExchange* nodes, CancelToken& token, bool carries_posted);

  bool last_of_node(std::uint64_t mails) noexcept;
  void carry_mail(int rank, const CallRecord& record, std::uint64_t number);
  std::string mail_of_node(std::uint64_t number, std::uint64_t mails) const;
  void deliver(const std::string& message, int node, int rank, const CallRecord& record, std::uint64_t number);
  void say_farewell(int rank);
  bool announce(int rank, const CallRecord& record);
  std::span<void* const> open(int rank, const CallRecord& record, void* payload);
  bool check_against_peers(int rank, std::uint64_t number, const CallRecord& record) const;
  void check_departed(int rank, std::uint64_t number, const CallRecord& record) const;
  bool all_arrived(std::uint64_t number) const noexcept;
  void await_all(int rank, std::uint64_t number);

  const NodePlace place_;
  NodeExchange* const nodes_;  // null: one process
  CancelToken& token_;
  CancelToken never_;  // fires for nobody: the end of a call cannot be cancelled
  Rendezvous opening_;
  Rendezvous closing_;
  const SpinBudget budget_;
  std::unique_ptr<Rank[]> ranks_;
  PostedCalls posted_;
  Bell bell_;                                    // for those who wait for long in exchange_mail
  std::atomic<std::uint64_t> mails_written_{0};  // by the ranks of this node
  std::atomic<int> departed_{0};                 // ranks of this node
  RecordTexts texts_;                            // of other nodes' records
  CancelToken::Subscription subscription_;
  std::unique_ptr<SideTraffic> side_traffic_;  // ends while the token still cancels the links
};

}  // namespace tandem::comm
