// The machine as the kernel describes it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace apps {

struct Machine {
  std::string cpu_model;
  std::vector<int> cores;           ///< that this process may use, in the kernel's numbers; hyper-threads count
  int physical_cores = 0;           ///< of these
  std::vector<std::string> numa;    ///< the cores of each node, as "0-15,32"
  std::optional<double> cpu_limit;  ///< cores' worth of time that the control group allows
  std::uint64_t memory = 0;         ///< bytes
  std::uint64_t memory_available = 0;
  std::optional<std::uint64_t> memory_limit;  ///< bytes that the control group allows
};

/// Reads /proc and /sys under `root`. What the kernel does not say stays empty.
Machine describe_machine(const std::string& root = "");

}  // namespace apps
