#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <c10/core/ScalarType.h>

namespace tandem_tool {

/// Where the elements of two tensors of one type and shape part.
struct ElementDifference {
  std::int64_t index = 0;         ///< of the first that differs, in the order of the last dimension first
  std::string part{};             ///< ".real" or ".imag" of a complex one
  std::string first{}, second{};  ///< the two, for people
  bool in_ulps = false;           ///< distances are in units in the last place, not plain differences of integers
  std::optional<std::uint64_t> distance{};  ///< of the first two; nothing: bits, or one is NaN
  std::optional<std::uint64_t> most{};      ///< largest of all that have one
  std::int64_t different = 0, elements = 0;
};

/// Compares the bits of `elements` elements of `type`, which lie one after the other: NaN is equal to itself, 0 is not
/// -0, and is 0 units in the last place away. Types that are no numbers of LibTorch's, and nothing, are compared byte
/// by byte. Returns nothing when they are the same.
std::optional<ElementDifference> compare_elements(const void* first, const void* second, std::size_t bytes,
                                                  std::optional<at::ScalarType> type);

}  // namespace tandem_tool
