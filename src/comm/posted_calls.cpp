#include "comm/posted_calls.h"

#include <array>
#include <string>
#include <vector>

#include "tandem/core/error.h"

namespace tandem::comm {

std::string different_reductions(std::uint64_t number, const CallRecord& mine, int rank, const CallRecord& theirs,
                                 int peer) {
  return "ranks reduce different gradients: reduction " + std::to_string(number) + " is " + to_string(mine) +
         " on rank " + std::to_string(rank) + ", but " + to_string(theirs) + " on rank " + std::to_string(peer) +
         "; all ranks must make the same backward passes in the same order";
}

std::string departed_while_reducing(int departed, int waiting) {
  return "rank " + std::to_string(departed) + " returned from its body while rank " + std::to_string(waiting) +
         " reduces gradients; all ranks must make the same calls";
}

// What one rank writes and all read.
struct alignas(64) PostedCalls::Lane {
  struct Call {
    CallRecord record;
    const void* payload = nullptr;
  };

  // seq_cst, with the bell's sleepers and with `departed`.
  std::atomic<std::uint64_t> posted{0};
  std::atomic<std::uint64_t> finished{0};  // calls that this rank has done its part of
  std::atomic<bool> working{false};        // on a part
  std::atomic<bool> withdrawn{false};
  std::atomic<bool> departed{false};
  std::array<Call, kOpen> calls;

  Call& call(std::uint64_t number) { return calls[number % kOpen]; }
};

PostedCalls::PostedCalls(const NodePlace& place, CancelToken& token, bool carried)
    : first_rank_(place.first_rank),
      end_rank_(place.first_rank + place.local_ranks),
      carried_(carried),
      token_(token),
      // What comes from other nodes takes longer than looking pays, and the threads that bring it want the cores.
      budget_(carried ? SpinBudget{.spins = 0, .yields = 0} : spin_budget(place.local_ranks)),
      lanes_(std::make_unique<Lane[]>(static_cast<std::size_t>(place.local_ranks))),
      subscription_(token, [this] { bell_.ring(); }) {}

PostedCalls::~PostedCalls() = default;

PostedCalls::Lane& PostedCalls::lane(int rank) const noexcept { return lanes_[rank - first_rank_]; }

std::uint64_t PostedCalls::post(int rank, const CallRecord& record, const void* payload) {
  token_.check();
  Lane& lane = this->lane(rank);
  const std::uint64_t number = lane.posted.load(std::memory_order_relaxed) + 1;  // only this thread writes it
  if (number > kOpen && !done(number - kOpen))
    throw CollectiveError("more than " + std::to_string(kOpen) +
                          " reductions are under way; use fewer, larger buckets");
  lane.call(number) = {record, payload};
  lane.posted.store(number, std::memory_order_seq_cst);
  bell_.ring_if_awaited();
  return number;
}

PostedCalls::Part::Part(PostedCalls& calls, int rank) : calls_(calls), rank_(rank), number_(0) {
  Lane& lane = calls.lane(rank);
  const std::uint64_t next = lane.finished.load(std::memory_order_relaxed) + 1;  // only this thread writes it
  if (calls.carried_ || !calls.posted_by_all(next)) {
    calls.token_.check();
    return;
  }
  // seq_cst, with `withdrawn`: a rank that withdraws sees that we work, or we see that it has withdrawn.
  lane.working.store(true, std::memory_order_seq_cst);
  try {
    calls.check_withdrawn();
    calls.check_same(rank, next);
  } catch (...) {
    lane.working.store(false, std::memory_order_release);
    throw;
  }
  number_ = next;
}

PostedCalls::Part::~Part() {
  if (number_ == 0) return;
  Lane& lane = calls_.lane(rank_);
  // release: whoever sees it sees what we have written, and may free what we have read.
  lane.working.store(false, std::memory_order_release);
  lane.finished.store(number_, std::memory_order_seq_cst);
  calls_.bell_.ring_if_awaited();
}

bool PostedCalls::done(std::uint64_t number) const noexcept {
  for (int rank = first_rank_; rank < end_rank_; ++rank)
    if (lane(rank).finished.load(std::memory_order_seq_cst) < number) return false;
  return true;
}

bool PostedCalls::posted_by_all(std::uint64_t number) const noexcept {
  for (int rank = first_rank_; rank < end_rank_; ++rank)
    if (lane(rank).posted.load(std::memory_order_seq_cst) < number) return false;
  return true;
}

const void* PostedCalls::payload(int peer, std::uint64_t number) const noexcept {
  return lane(peer).call(number).payload;
}

void PostedCalls::wait(int rank, std::uint64_t number) {
  const Lane& lane = this->lane(rank);
  const std::uint64_t next = lane.finished.load(std::memory_order_relaxed) + 1;
  const auto ready = [&] {
    return token_.cancelled() || done(number) || (!carried_ && next <= number && posted_by_all(next));
  };
  if (spin_until(ready, budget_.spins)) return;
  check_departed(rank, number);
  bell_.wait(ready, budget_.yields);
}

bool PostedCalls::await_carried(
    const std::function<void(std::uint64_t, const CallRecord&, std::span<const void* const>)>& work) {
  Lane& first = lane(first_rank_);
  const auto next = [&] { return first.finished.load(std::memory_order_seq_cst) + 1; };
  const auto all_departed = [&] {
    for (int rank = first_rank_; rank < end_rank_; ++rank)
      if (!lane(rank).departed.load(std::memory_order_seq_cst)) return false;
    return true;
  };
  bell_.wait([&] { return token_.cancelled() || posted_by_all(next()) || all_departed(); }, budget_.yields);
  token_.check();
  const std::uint64_t number = next();
  if (!posted_by_all(number)) return false;
  // As in Part: a rank that withdraws sees that we work, or we see that it has withdrawn.
  carrying_.store(true, std::memory_order_seq_cst);
  try {
    check_withdrawn();
    check_same(first_rank_, number);
    std::vector<const void*> payloads;
    for (int rank = first_rank_; rank < end_rank_; ++rank) payloads.push_back(payload(rank, number));
    work(number, first.call(number).record, payloads);
  } catch (...) {
    carrying_.store(false, std::memory_order_release);
    throw;
  }
  carrying_.store(false, std::memory_order_release);
  for (int rank = first_rank_; rank < end_rank_; ++rank) lane(rank).finished.store(number, std::memory_order_seq_cst);
  bell_.ring_if_awaited();
  return true;
}

void PostedCalls::check_withdrawn() const {
  token_.check();
  for (int rank = first_rank_; rank < end_rank_; ++rank)
    if (lane(rank).withdrawn.load(std::memory_order_seq_cst)) token_.throw_cancelled();
}

void PostedCalls::check_same(int rank, std::uint64_t number) const {
  const CallRecord& mine = lane(rank).call(number).record;
  for (int peer = first_rank_; peer < end_rank_; ++peer) {
    const CallRecord& theirs = lane(peer).call(number).record;
    if (theirs == mine) continue;
    const CollectiveError error(different_reductions(number, mine, rank, theirs, peer));
    token_.cancel(std::make_exception_ptr(error), rank);
    throw error;
  }
}

void PostedCalls::check_departed(int rank, std::uint64_t number) const {
  for (int peer = first_rank_; peer < end_rank_; ++peer) {
    const Lane& lane = this->lane(peer);
    if (!lane.departed.load(std::memory_order_seq_cst) || lane.posted.load(std::memory_order_seq_cst) >= number)
      continue;
    const CollectiveError error("rank " + std::to_string(peer) + " returned from its body while rank " +
                                std::to_string(rank) + " waits for its gradients; all ranks must make the same calls");
    // Before it is thrown: the one to blame is not the rank that finds out.
    token_.cancel(std::make_exception_ptr(error), peer);
    throw error;
  }
}

void PostedCalls::depart(int rank) {
  lane(rank).departed.store(true, std::memory_order_seq_cst);
  bell_.ring_if_awaited();
  const std::uint64_t posted = lane(rank).posted.load(std::memory_order_relaxed);
  for (int peer = first_rank_; peer < end_rank_; ++peer)
    if (lane(peer).posted.load(std::memory_order_seq_cst) > posted) {
      const CollectiveError error(departed_while_reducing(rank, peer));
      token_.cancel(std::make_exception_ptr(error), rank);
      return;
    }
}

void PostedCalls::withdraw(int rank) noexcept {
  // See Part's constructor. A part takes some milliseconds at most.
  lane(rank).withdrawn.store(true, std::memory_order_seq_cst);
  for (int peer = first_rank_; peer < end_rank_; ++peer)
    while (peer != rank && lane(peer).working.load(std::memory_order_seq_cst)) std::this_thread::yield();
  while (carrying_.load(std::memory_order_seq_cst)) std::this_thread::yield();
}

void PostedCalls::forget(int rank) noexcept {
  lane(rank).finished.store(0, std::memory_order_seq_cst);
  lane(rank).posted.store(0, std::memory_order_seq_cst);
}

}  // namespace tandem::comm
