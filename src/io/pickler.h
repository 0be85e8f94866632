// Writes pickles of plain values and tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

namespace tandem::io {

/// A tensor whose elements a file has in a storage of their own.
struct StoredElements {
  at::Tensor tensor;                  ///< on any device, with these elements
  std::vector<std::int64_t> strides;  ///< in which they lie there, without gaps

  /// As they lie there, on the CPU, in a type of the same size.
  at::Tensor dense() const;
};

/// A value as Python's torch.save has it: a pickle, and the elements of its storages "0", "1" and so on.
struct Pickle {
  std::string text;
  std::vector<StoredElements> storages;
};

/// Of the kinds of value that pickle_file.h names. Throws CheckpointError that names the file, as `shown`, and where in
/// `value` something is that cannot be in it, or would not be read back.
Pickle pickle_of(const c10::IValue& value, const std::string& shown);

}  // namespace tandem::io
