#pragma once

#include <cstdint>

namespace tandem {

/// Asks the kernel for the shortest time slices for the calling thread. Its share of a core that other programs want
/// too stays, but when what it slept for is there, Linux (from 6.12 on) lets it go before a program in the middle of
/// its slice of 3 ms or more: all ranks wait for the one that does not run. Where the kernel refuses, nothing happens.
void ask_for_short_slices() noexcept;

/// Nanoseconds of a time slice of the calling thread; 0 where the kernel does not tell.
std::uint64_t time_slice() noexcept;

}  // namespace tandem
