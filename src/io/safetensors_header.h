#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <c10/core/ScalarType.h>

/// \file
/// What a safetensors file (see safetensors.h) says of its tensors, without reading them.
namespace tandem::io {

/// A tensor of a file.
struct StoredTensor {
  std::string name;                    ///< in the file
  std::string dtype;                   ///< of its elements, as the format calls it: "BF16"
  std::optional<at::ScalarType> type;  ///< LibTorch's for it; nothing where it has none: F6_E2M3, F6_E3M2
  std::vector<std::int64_t> shape;     ///< empty: a single number; of F4 two numbers are one element of LibTorch's
  std::uint64_t begin,                 ///< where its bytes begin in the file
      end;                             ///< and where they end

  std::uint64_t bytes() const { return end - begin; }  ///< size of its data
  bool is_floating() const;                            ///< whether its elements are real numbers with an exponent
  /// Its sizes as a tensor of LibTorch's. Throws CheckpointError that names the file, as `shown`, when it can be none.
  std::vector<std::int64_t> sizes(const std::string& shown) const;
};

/// All that comes before the data.
struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;            ///< in the order in which they lie there
  std::map<std::string, std::string> metadata;  ///< texts by name, as `__metadata__` has them
};

/// Reads the header of `path` and compares it with the file's size. Throws CheckpointError that names the file (as
/// `shown`, if that is given) and the field when it is missing, damaged or no such file.
SafetensorsHeader read_safetensors_header(const std::string& path, const std::string& shown = {});

/// The format's name for a type, such as "BF16". Throws CheckpointError for a type that it does not have.
std::string safetensors_type(at::ScalarType type);

}  // namespace tandem::io
