// The reduction kernel.
#pragma once

#include <string>

#include "comm/reduction_kernel.h"

namespace tandem::cuda {

/// Loads the kernels of all types and operations on the current device. Returns CUDA's text when it cannot.
std::string load_reductions();

/// Enqueues `reduction` on `stream` of the current device. Returns CUDA's text when it cannot, empty when it has.
std::string launch_reduction(const comm::Reduction& reduction, void* stream);

}  // namespace tandem::cuda
