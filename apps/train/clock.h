#pragma once

#include <chrono>

namespace train {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Seconds since this process was started (to 10 ms, the kernel's resolution).
double seconds_since_process_start();

/// Resident memory of this process, in MB (10^6 bytes).
double rss_mb();

/// Largest resident memory of this process so far, in MB (10^6 bytes).
double peak_rss_mb();

}  // namespace train
