// Copies of weights for a session's host.
#pragma once

#include <exception>
#include <memory>

#include "session/session_run.h"

namespace tandem {

/// All parameters and buffers, in new memory of the CPU.
io::NamedTensors copies_on_cpu(const torch::nn::Module& module);

/// Gives `take` weights of its own, or the error when there are none.
void give_copy(const std::shared_ptr<const ModelSnapshot>& weights, const SessionRun::TakeSnapshot& take,
               std::exception_ptr error);

}  // namespace tandem
