// How ranks divide a reduction.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "comm/shared_reducer.h"

namespace tandem::comm {

/// Calls `reduce(i, begin, end)` for the elements of each part i that `rank` reduces. The parts count as one row of
/// elements, of which each rank has 1/R, in whole blocks of the parts: so no two ranks write to one cache line, and the
/// sums of squares do not depend on the number of ranks.
template <class Reduce>
void for_each_share(std::span<const ElementRow> parts, int rank, int ranks, const Reduce& reduce) {
  std::int64_t total = 0;
  for (const ElementRow& part : parts) total += part.elements;
  std::int64_t offset = 0;
  // Where the share of `rank` begins in a part of so many elements, and that of the rank before it ends.
  const auto begin_of = [&](int of_rank, std::int64_t elements) {
    const std::int64_t begin = std::max(total * of_rank / ranks - offset, std::int64_t{0});
    return begin >= elements || of_rank == ranks ? elements : begin / kReductionBlock * kReductionBlock;
  };
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::int64_t begin = begin_of(rank, parts[i].elements), end = begin_of(rank + 1, parts[i].elements);
    offset += parts[i].elements;
    if (begin < end) reduce(i, begin, end);
  }
}

}  // namespace tandem::comm
