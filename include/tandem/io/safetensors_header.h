#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <c10/core/ScalarType.h>

/// \file
/// What a safetensors file (see safetensors.h) says of its tensors, without reading them.
namespace tandem::io {

/// A tensor of a file.
struct StoredTensor {
  std::string name;                 ///< in the file
  at::ScalarType type;              ///< of its elements
  std::vector<std::int64_t> shape;  ///< empty: a single number
  std::uint64_t begin,              ///< where its bytes begin in the file
      end;                          ///< and where they end

  std::uint64_t bytes() const { return end - begin; }  ///< size of its data
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
