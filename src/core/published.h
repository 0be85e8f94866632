#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace tandem {

/// A value that one thread stores now and then, and any thread reads whole, at any time, without a lock: neither waits
/// for the other, but a reader whose copy was overtaken copies again.
///
/// Source: a sequence lock as in H. Boehm, "Can seqlocks get along with programming language memory models?", 2012.
template <class T>
class Published {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  /// Holds `value` at first.
  explicit Published(const T& value = {}) { store(value); }
  Published(const Published&) = delete;
  Published& operator=(const Published&) = delete;

  /// One thread at a time.
  void store(const T& value) noexcept {
    Words words{};
    std::memcpy(words.data(), &value, sizeof value);
    const std::uint64_t version = version_.load(std::memory_order_relaxed);  // only this thread writes it
    version_.store(version + 1, std::memory_order_relaxed);
    // release on each word: a reader that sees one of the new words sees the odd version too.
    for (std::size_t i = 0; i < kWords; ++i) words_[i].store(words[i], std::memory_order_release);
    version_.store(version + 2, std::memory_order_release);
  }

  /// The value that was stored last. Any thread.
  T load() const noexcept {
    Words words;
    std::uint64_t before = 0, after = 1;
    while (before != after || before % 2 != 0) {
      before = version_.load(std::memory_order_acquire);
      // acquire: the second look at the version stays behind the words.
      for (std::size_t i = 0; i < kWords; ++i) words[i] = words_[i].load(std::memory_order_acquire);
      after = version_.load(std::memory_order_relaxed);
    }
    T value;
    std::memcpy(static_cast<void*>(&value), words.data(), sizeof value);
    return value;
  }

 private:
  static constexpr std::size_t kWords = (sizeof(T) + 7) / 8;
  using Words = std::array<std::uint64_t, kWords>;

  alignas(64) std::atomic<std::uint64_t> version_{0};  // odd: a value is being stored
  std::array<std::atomic<std::uint64_t>, kWords> words_{};
};

}  // namespace tandem
