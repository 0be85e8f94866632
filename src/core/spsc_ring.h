#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <utility>

#include "core/asymmetric_fence.h"
#include "core/cancel_token.h"
#include "core/spin_budget.h"

namespace tandem {

/// Bounded lock-free queue from one producer thread to one consumer thread.
///
/// Source of the index scheme: E. Rigtorp, SPSCQueue (each side caches the other's index, so that in the steady state
/// neither touches a cache line that the other writes). Sleeping is a Dekker handshake: a side announces that it will
/// sleep and looks again, the other side publishes and looks for the announcement; with an AsymmetricFence between the
/// two of each side at least one of them sees the other. Only the side that goes to sleep pays for it.
template <class T>
class SpscRing {
 public:
  /// Room for `capacity` >= 1 items. `token` outlives the ring.
  SpscRing(std::size_t capacity, CancelToken& token)
      : capacity_(capacity),
        mask_(std::bit_ceil(capacity) - 1),
        slots_(std::allocator<T>().allocate(mask_ + 1)),
        token_(token),
        subscription_(token, [this] { wake_both(); }) {}

  ~SpscRing() {
    // Both sides are done with the ring: no order needed.
    const std::uint64_t end = tail_.load(std::memory_order_relaxed);
    for (std::uint64_t i = head_.load(std::memory_order_relaxed); i != end; ++i) std::destroy_at(slot(i));
    std::allocator<T>().deallocate(slots_, mask_ + 1);
  }
  SpscRing(const SpscRing&) = delete;
  SpscRing& operator=(const SpscRing&) = delete;

  std::size_t capacity() const noexcept { return capacity_; }  ///< items that there is room for

  /// Items in the ring, at some moment during the call. Any thread.
  std::size_t size() const noexcept {
    const std::uint64_t head = head_.load(std::memory_order_acquire);
    return static_cast<std::size_t>(tail_.load(std::memory_order_acquire) - head);
  }

  /// Producer: adds `value`, waiting while the ring is full. False, and the value is dropped, when the consumer has
  /// closed. Throws Cancelled when the token fires.
  bool push(T value) {
    for (;;) {
      token_.check();
      // acquire: see close_consumer.
      if (consumer_closed_.load(std::memory_order_acquire)) return false;
      if (try_push(value)) return true;
      sleep(popped_, producer_sleeps_, [&] { return !full_now() || consumer_closed_.load(std::memory_order_seq_cst); });
    }
  }

  /// Consumer: takes the oldest item, waiting while there is none. Nothing when the producer has closed and all is
  /// taken. Throws Cancelled when the token fires.
  std::optional<T> pop() {
    for (;;) {
      token_.check();
      // acquire, and before looking for items: all that was pushed before the close is seen.
      const bool closed = producer_closed_.load(std::memory_order_acquire);
      if (auto value = try_pop()) return value;
      if (closed) return std::nullopt;
      sleep(pushed_, consumer_sleeps_,
            [&] { return !empty_now() || producer_closed_.load(std::memory_order_seq_cst); });
    }
  }

  /// Producer: adds `value` (moved from) if there is room.
  bool try_push(T& value) {
    const std::uint64_t tail = tail_.load(std::memory_order_relaxed);  // only this thread writes it
    if (tail - head_seen_ == capacity_) {
      // acquire: the consumer is done with the slot.
      head_seen_ = head_.load(std::memory_order_acquire);
      if (tail - head_seen_ == capacity_) return false;
    }
    std::construct_at(slot(tail), std::move(value));
    // Publishes the item (release) and orders that before the look at the announcement (handshake).
    fence_.store_and_light_fence(tail_, tail + 1);
    wake(pushed_, consumer_sleeps_);
    return true;
  }

  /// Consumer: takes the oldest item if there is one.
  std::optional<T> try_pop() {
    const std::uint64_t head = head_.load(std::memory_order_relaxed);  // only this thread writes it
    if (head == tail_seen_) {
      // acquire: the item is there with the index.
      tail_seen_ = tail_.load(std::memory_order_acquire);
      if (head == tail_seen_) return std::nullopt;
    }
    std::optional<T> value(std::in_place, std::move(*slot(head)));
    std::destroy_at(slot(head));
    // Gives the slot back (release) and orders that before the look at the announcement (handshake).
    fence_.store_and_light_fence(head_, head + 1);
    wake(popped_, producer_sleeps_);
    return value;
  }

  /// Producer: no more items come. May be called more than once, from any thread that follows the last push.
  void close_producer() noexcept {
    fence_.store_and_light_fence(producer_closed_, true);
    wake(pushed_, consumer_sleeps_);
  }

  /// Consumer: no more items are wanted. May be called more than once.
  void close_consumer() noexcept {
    fence_.store_and_light_fence(consumer_closed_, true);
    wake(popped_, producer_sleeps_);
  }

 private:
  using Signal = std::atomic<std::uint32_t>;

  T* slot(std::uint64_t index) { return slots_ + (index & mask_); }
  bool full_now() const {
    return tail_.load(std::memory_order_relaxed) - head_.load(std::memory_order_seq_cst) == capacity_;
  }
  bool empty_now() const { return tail_.load(std::memory_order_seq_cst) == head_.load(std::memory_order_relaxed); }

  template <class Ready>
  void sleep(Signal& signal, std::atomic<bool>& announcement, Ready ready) {
    if (spin_until([&] { return ready() || token_.cancelled(); }, budget_.spins)) return;
    // acquire: before the looks below, so that a signal after them is not missed.
    const std::uint32_t before = signal.load(std::memory_order_acquire);
    announcement.store(true, std::memory_order_seq_cst);
    fence_.heavy_fence();
    if (!ready() && !token_.cancelled()) wait_for_change(signal, before, {.spins = 0, .yields = budget_.yields});
    announcement.store(false, std::memory_order_relaxed);
  }

  static void wake(Signal& signal, const std::atomic<bool>& announcement) noexcept {
    if (!announcement.load(std::memory_order_seq_cst)) return;
    signal.fetch_add(1, std::memory_order_release);
    signal.notify_one();
  }

  void wake_both() noexcept {
    for (Signal* signal : {&pushed_, &popped_}) {
      signal->fetch_add(1, std::memory_order_release);
      signal->notify_all();
    }
  }

  static constexpr std::size_t kLine = 64;

  const std::size_t capacity_;
  const std::size_t mask_;  // of the slots, a power of two
  T* const slots_;
  CancelToken& token_;
  const AsymmetricFence fence_;
  const SpinBudget budget_ = spin_budget(2);

  // Indices only grow; an item's slot is its index modulo the number of slots.
  alignas(kLine) std::atomic<std::uint64_t> tail_{0};  // written by the producer
  std::uint64_t head_seen_ = 0;                        // the producer's copy of head_
  alignas(kLine) std::atomic<std::uint64_t> head_{0};  // written by the consumer
  std::uint64_t tail_seen_ = 0;                        // the consumer's copy of tail_
  // Read at each operation, written only around sleeping and closing.
  alignas(kLine) std::atomic<bool> consumer_sleeps_{false};
  std::atomic<bool> producer_sleeps_{false};
  std::atomic<bool> producer_closed_{false};
  std::atomic<bool> consumer_closed_{false};
  Signal pushed_{0};
  Signal popped_{0};
  CancelToken::Subscription subscription_;
};

}  // namespace tandem
