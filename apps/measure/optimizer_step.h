#pragma once

#include <cstdint>

namespace measure {

enum class Optimizer { adamw, adam, sgd };  ///< sgd with momentum

/// Medians of the calling thread's own time (which other programs on the machine do not count in), in seconds.
struct StepTimes {
  double fused;  ///< of Tandem's step
  double peer;   ///< of what it is compared with, in turn with it
};

/// A step over 100 parameters of 64 x 64, to torch::optim's own step.
StepTimes step_of_small_tensors(Optimizer optimizer, int runs);

/// A step of AdamW over one parameter (16 bytes an element with gradient and averages), to reading and writing what it
/// must.
StepTimes step_of_large_tensor(std::int64_t elements, int runs);

}  // namespace measure
