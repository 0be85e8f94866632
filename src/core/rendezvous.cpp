#include "core/rendezvous.h"

namespace tandem {

Rendezvous::Rendezvous(int parties, CancelToken& token)
    : payloads_{std::vector<void*>(static_cast<std::size_t>(parties)),
                std::vector<void*>(static_cast<std::size_t>(parties))},
      parties_(parties),
      budget_(spin_budget(parties)),
      token_(token),
      subscription_(token, [this] {
        // release: as every change of the word, though nothing is handed over here.
        round_.fetch_or(1, std::memory_order_release);
        round_.notify_all();
      }) {}

std::span<void* const> Rendezvous::exchange(int party, void* payload) {
  // relaxed: the round cannot end before this party has arrived, and its last end was seen with acquire.
  const std::uint32_t round = round_.load(std::memory_order_relaxed);
  if (round & 1) token_.throw_cancelled();
  auto& payloads = payloads_[(round >> 1) & 1];
  payloads[static_cast<std::size_t>(party)] = payload;
  // acq_rel: releases this payload to the last party, which acquires all of them and releases them with the round.
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
    // relaxed: nobody arrives for the next round before the exchange below releases it.
    arrived_.store(0, std::memory_order_relaxed);
    std::uint32_t expected = round;
    // release hands the payloads over. It fails only when the token has fired meanwhile: then for everyone.
    if (!round_.compare_exchange_strong(expected, round + 2, std::memory_order_acq_rel, std::memory_order_relaxed))
      token_.throw_cancelled();
    round_.notify_all();
    return payloads;
  }
  const std::uint32_t now = wait_for_change(round_, round, budget_);
  // A cancel after the round was completed leaves the count changed, too.
  if ((now & ~1u) == round) token_.throw_cancelled();
  return payloads;
}

}  // namespace tandem
