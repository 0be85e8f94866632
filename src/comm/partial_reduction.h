// Reductions in parts, one after the other: of the ranks of one node, then of the next one's.
#pragma once

#include <cstdint>
#include <span>

#include "tandem/comm/reduction.h"

namespace tandem::comm {

/// Bytes of a partial result of one element: that of float16 and bfloat16 is a float32.
std::size_t partial_size_of(ElementType type);

/// Goes on from the partial results `before` (null: begins) with elements [begin, end) of the `inputs`, in their order,
/// and writes the partial results of these elements to `after`, which may be `before`. Partial results begin with that
/// of element `begin`; both must be aligned for their type.
void accumulate(ElementType type, ReduceOp op, const void* before, std::span<const void* const> inputs,
                std::int64_t begin, std::int64_t end, void* after);

/// Writes the results to elements [begin, end) of the `outputs`, out of the partial results after the last rank; for
/// ReduceOp::mean divided by the number of `ranks`. Together, the very bits that reduce_elements has for all inputs.
void finish_partial(ElementType type, ReduceOp op, const void* partial, int ranks, std::span<void* const> outputs,
                    std::int64_t begin, std::int64_t end);

}  // namespace tandem::comm
