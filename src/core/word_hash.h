#pragma once

#include <cstdint>

namespace tandem {

/// A hash of 64-bit words one after another: FNV-1a (Fowler, Noll, Vo) by whole words, with the high bits folded back
/// in, which its low ones need then. It need not resist attacks, only tell different things apart. Its values are part
/// of checkpoints.
class WordHash {
 public:
  /// Goes on from the value of another one, or begins.
  explicit WordHash(std::uint64_t value = 0xcbf29ce484222325ull) : value_(value) {}

  /// Adds a word.
  void add(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x100000001b3ull;
    value_ ^= value_ >> 32;
  }

  std::uint64_t value() const { return value_; }  ///< of the words so far

 private:
  std::uint64_t value_;
};

}  // namespace tandem
