// Ranges for NVTX tools (Nsight Systems, Nsight Compute), in the domain `tandem`.
#pragma once

#include <cstdint>

#include "tandem/trace/range.h"

namespace tandem::trace::nvtx {

/// What goes with a range, as the tools show it; -1: nothing.
struct Payload {
  std::int64_t rank, step, bucket, bytes;
};

/// Whether a tool listens. It does so from the program's start or not at all. Always false where Tandem was built
/// without NVTX.
bool is_attached() noexcept;

// The others are only called while one does.

/// Opens a range of the calling thread; `pop` ends the innermost.
void push(Event event, const Payload& payload);
void pop();

/// Gives the calling thread its rank's name.
void name_thread(int rank);

/// Rank 0 begins this step. Opens and ends the process-wide range "profile" around the steps of `capture`: what the
/// scripts in profiles/ have their tools capture.
void step_begins(std::int64_t step, Steps capture);

}  // namespace tandem::trace::nvtx
