#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <c10/core/ScalarType.h>

/// What a safetensors file (see safetensors.h) says of its tensors, without reading them.
namespace tandem::io {

/// A tensor of a file.
struct StoredTensor {
  std::string name;
  at::ScalarType type;
  std::vector<std::int64_t> shape;
  std::uint64_t begin, end;  ///< its bytes in the file

  std::uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;  ///< in the order in which they lie there
  std::map<std::string, std::string> metadata;
};

/// Reads the header of `path` and compares it with the file's size. Throws CheckpointError that names the file (as
/// `shown`, if that is given) and the field when it is missing, damaged or no such file.
SafetensorsHeader read_safetensors_header(const std::string& path, const std::string& shown = {});

/// The format's name for a type, such as "BF16". Throws CheckpointError for a type that it does not have.
std::string safetensors_type(at::ScalarType type);

}  // namespace tandem::io
