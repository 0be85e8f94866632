#pragma once

#include <cstdint>
#include <memory>

#include "comm/call_record.h"
#include "core/bell.h"
#include "core/cancel_token.h"

namespace tandem::comm {

/// Calls of a group's ranks that nobody waits for when they are made: a rank posts call n, goes on, and does its part
/// of it once all ranks have posted theirs. The n-th call of every rank is the same one.
class PostedCalls {
 public:
  /// Calls that can be under way.
  static constexpr std::uint64_t kOpen = 1024;

  /// Of `world_size` ranks, without a call. `token` outlives it.
  PostedCalls(int world_size, CancelToken& token);
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

  int world_size_;
  CancelToken& token_;
  const SpinBudget budget_;
  std::unique_ptr<Lane[]> lanes_;  // by rank
  Bell bell_;
  CancelToken::Subscription subscription_;
};

}  // namespace tandem::comm
