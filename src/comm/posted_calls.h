#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "comm/call_record.h"
#include "comm/nodes/exchange.h"
#include "core/bell.h"
#include "core/cancel_token.h"

namespace tandem::comm {

/// What is said where reduction `number` is not the same on two ranks.
std::string different_reductions(std::uint64_t number, const CallRecord& mine, int rank, const CallRecord& theirs,
                                 int peer);

/// What is said where one rank has returned from its body, and another one waits for it in a reduction.
std::string departed_while_reducing(int departed, int waiting);

/// Calls of a group's ranks that nobody waits for when they are made: a rank posts call n, goes on, and does its part
/// of it once all ranks have posted theirs. The n-th call of every rank is the same one.
class PostedCalls {
 public:
  /// Calls that can be under way.
  static constexpr std::uint64_t kOpen = 1024;

  /// Of the ranks of `place`, without a call. `token` outlives it. `carried`: the ranks do no parts, but one thread
  /// does what is to be done for all of them: see `await_carried`.
  PostedCalls(const NodePlace& place, CancelToken& token, bool carried = false);
  ~PostedCalls();
  PostedCalls(const PostedCalls&) = delete;
  PostedCalls& operator=(const PostedCalls&) = delete;

  /// Posts `rank`'s next call and returns its number, from 1. `payload` may be read, and what it leads to be written,
  /// by all ranks until the call is `done` or the rank is `withdrawn`. Throws CollectiveError when kOpen are under way,
  /// and Cancelled when the token has fired.
  std::uint64_t post(int rank, const CallRecord& record, const void* payload);

  /// `rank`'s part of the first call that it has not done its part of. False while that is not posted by all ranks;
  /// otherwise the ranks' payloads are there until it is destroyed, which counts the part as done.
  ///
  /// Throws CollectiveError when the ranks have posted different calls, and Cancelled when the token has fired.
  class Part {
   public:
    /// Looks for it, without waiting.
    Part(PostedCalls& calls, int rank);
    ~Part();
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    /// Whether it is there.
    explicit operator bool() const noexcept { return number_ != 0; }

    /// What `peer` has posted with it, of the type that all ranks gave.
    template <class T>
    const T& payload(int peer) const {
      return *static_cast<const T*>(calls_.payload(peer, number_));
    }

   private:
    PostedCalls& calls_;
    int rank_;
    std::uint64_t number_;  // 0: not there
  };

  /// True when all ranks have done their parts of call `number`.
  bool done(std::uint64_t number) const noexcept;

  /// Waits until a Part of `rank` is there or `number` is done. Throws like Part, and CollectiveError when a rank has
  /// departed that has not posted `number`.
  void wait(int rank, std::uint64_t number);

  /// For the thread that carries calls to other nodes: waits until all ranks of this one have posted the next call,
  /// and calls `work` with its number, its record and the ranks' payloads, which counts it as done. False, without a
  /// call, when the ranks have departed. Throws like Part, and what `work` throws; then the call is not done.
  bool await_carried(const std::function<void(std::uint64_t, const CallRecord&, std::span<const void* const>)>& work);

  /// Tells the others that `rank` posts no more calls. Whoever waits for one, or will, gets a CollectiveError.
  void depart(int rank);

  /// Waits until no rank works on `rank`'s payloads any more: call it, with the token fired, before payloads of calls
  /// that are not done go away.
  void withdraw(int rank) noexcept;

  /// Forgets the calls of `rank`. All ranks do so between two meetings.
  void forget(int rank) noexcept;

 private:
  struct Lane;

  const void* payload(int peer, std::uint64_t number) const noexcept;
  bool posted_by_all(std::uint64_t number) const noexcept;
  void check_withdrawn() const;
  void check_same(int rank, std::uint64_t number) const;
  void check_departed(int rank, std::uint64_t number) const;

  Lane& lane(int rank) const noexcept;

  const int first_rank_, end_rank_;
  const bool carried_;
  std::atomic<bool> carrying_{false};
  CancelToken& token_;
  const SpinBudget budget_;
  std::unique_ptr<Lane[]> lanes_;  // of the ranks of this node
  Bell bell_;
  CancelToken::Subscription subscription_;
};

}  // namespace tandem::comm
