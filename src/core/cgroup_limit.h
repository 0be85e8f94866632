// What Linux's control groups (cgroups) leave to this process of its machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace tandem {

/// Cores' worth of time that the control group and those around it allow; nothing: no limit. Reads files under `root`.
std::optional<double> cpu_limit(const std::string& root = {});

/// Bytes of memory that they allow, where that is below `memory`, the machine's.
std::optional<std::uint64_t> memory_limit(std::uint64_t memory, const std::string& root = {});

/// How many threads of this process can run at once: the cores that it may use, or its cpu_limit where that is less.
/// A part of a core counts as a core: what it adds is more than what ranks lose by waiting. At least 1. The limit of
/// the machine itself is read once in a process.
int usable_cores(const std::string& root = {}) noexcept;

}  // namespace tandem
