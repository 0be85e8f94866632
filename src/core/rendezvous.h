#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "core/cancel_token.h"
#include "core/spin_budget.h"

namespace tandem {

/// A barrier that can be used again and again, with a payload from everyone to everyone.
///
/// Completing and cancelling exclude each other: a round completes for all parties or for none, so that a party that
/// returned knows that all others will.
class Rendezvous {
 public:
  /// For `parties` threads, numbered from 0. `token` outlives it.
  Rendezvous(int parties, CancelToken& token);
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;

  int parties() const noexcept { return parties_; }  ///< that meet

  /// Returns when all parties have called it. Throws Cancelled when the token fires before that.
  void wait(int party) { exchange(party, nullptr); }

  /// Meets as `wait` does, and returns everyone's payload by party. The span is valid until this party's next call.
  std::span<void* const> exchange(int party, void* payload);

 private:
  // A party may still read round k when others arrive for round k + 1, but not when they arrive for k + 2.
  std::array<std::vector<void*>, 2> payloads_;
  const int parties_;
  const SpinBudget budget_;
  CancelToken& token_;
  alignas(64) std::atomic<int> arrived_{0};
  // Completed rounds * 2, plus 1 when cancelled: the one word on which waiters sleep and everything is decided.
  alignas(64) std::atomic<std::uint32_t> round_{0};
  CancelToken::Subscription subscription_;
};

}  // namespace tandem
