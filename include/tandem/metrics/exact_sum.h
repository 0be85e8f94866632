#pragma once

#include <ATen/core/Tensor.h>

/// \file
/// Sums of float64 without rounding: an int64 tensor that holds all bits of what was added. Two of them add up element
/// by element, so a sum does not depend on the order of its numbers, nor on how they were spread over ranks.
namespace tandem::metrics {

/// The sum of nothing, int64 [68]. As a state of a Metric it merges by Merge::sum.
at::Tensor exact_zero();

/// Adds all elements of `values`, of any real type and on any device, to `sum`. Throws DataError for infinite numbers
/// and NaN.
void exact_add(at::Tensor& sum, const at::Tensor& values);

/// The sum, rounded once to float64; infinite where it is too large.
double exact_value(const at::Tensor& sum);

}  // namespace tandem::metrics
