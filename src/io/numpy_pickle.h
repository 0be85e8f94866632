// Numbers and arrays of NumPy's in pickles: a type and bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

namespace tandem::io {

/// As NumPy's dtype has it: "f8" is a double.
struct NumpyType {
  std::string name;
  bool big_endian = false;
};

/// The number in `bytes`, as a plain one of Python's. Throws UnpickleError when it is none, or another type.
c10::IValue numpy_scalar(const NumpyType& type, std::string_view bytes);

/// A copy of the array in `bytes`; `fortran`: the first index counts fastest. Throws UnpickleError.
at::Tensor numpy_array(const NumpyType& type, const std::vector<std::int64_t>& shape, bool fortran,
                       std::string_view bytes);

}  // namespace tandem::io
