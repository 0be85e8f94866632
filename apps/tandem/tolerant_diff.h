#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tandem_tool {

/// What two sets of tensors have not in common.
struct Difference {
  std::vector<std::string> only_in_first, only_in_second;
  struct Tensor {
    std::string name;
    std::string what;                 ///< "shape [2, 3] and [3, 2]", "type F32 and BF16", "values"
    std::optional<double> largest{};  ///< largest absolute difference of two numbers; NaN: one of them is none
  };
  std::vector<Tensor> tensors;
  std::size_t equal = 0;  ///< tensors

  bool none() const { return only_in_first.empty() && only_in_second.empty() && tensors.empty(); }
};

/// Compares two safetensors files or directories of them, tensor by tensor. Numbers that differ by no more than
/// `tolerance` count as equal; so do two NaN. Throws tandem::CheckpointError.
Difference compare(const std::string& first, const std::string& second, double tolerance);

}  // namespace tandem_tool
