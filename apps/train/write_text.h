#pragma once

#include <cstdint>
#include <string>

#include "net.h"

namespace train {

/// Up to `bytes` bytes that `net` writes after a newline: each is drawn from its scores for the next byte after the
/// `context` bytes before, with a fixed seed. Ends early at scores that are not finite and when the user interrupts.
/// Leaves `net` in evaluation mode.
std::string write_text(Net& net, std::int64_t context, std::int64_t bytes);

}  // namespace train
