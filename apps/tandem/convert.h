#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <c10/core/ScalarType.h>

namespace tandem_tool {

struct Conversion {
  std::string from;                                ///< a safetensors file or a directory of them
  std::string to;                                  ///< a directory, or a file that ends in .safetensors; not there yet
  std::optional<at::ScalarType> type{};            ///< of all tensors of floating-point numbers; nothing: as they are
  std::uint64_t max_shard_bytes = 10'000'000'000;  ///< of a directory's files, but for a tensor that is larger
};

/// Writes the tensors of one place to another, which appears whole or not at all. Needs the memory of one file that it
/// writes. Throws tandem::CheckpointError; tandem::ConfigError when something is at `to`.
void convert(const Conversion& conversion);

/// Reads "200MB", "5GB" (powers of 1000, as Accelerate's max_shard_size) or a number of bytes. Throws
/// tandem::ConfigError.
std::uint64_t parse_bytes(const std::string& text);

}  // namespace tandem_tool
