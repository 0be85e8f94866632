// Reductions of plain numbers, in rank order.
#pragma once

#include <span>

#include "tandem/comm/reduction.h"
#include "tandem/runtime/rank_values.h"

namespace tandem {

/// Throws CollectiveError when `op` is not defined for what a value has at one place: a mean of integers.
void check_reduction(comm::ReduceOp op, const detail::Numbers& numbers);

/// `numbers`, one a rank and all of one kind, reduced. Throws CollectiveError when an integer becomes too large.
detail::Number reduce_numbers(std::span<const detail::Number> numbers, comm::ReduceOp op);

}  // namespace tandem
