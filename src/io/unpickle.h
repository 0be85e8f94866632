// Reads pickles of plain values and tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

namespace tandem::io {

/// The pickle is damaged, or needs what this reader has not. Says what, without naming the file.
struct UnpickleError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The storage `key` as a tensor of bytes; it must have `bytes` of them. Throws UnpickleError.
using FindStorage = std::function<at::Tensor(const std::string& key, std::uint64_t bytes)>;

/// The value that `pickle` describes, by the opcodes of Python's pickle protocols 2 to 5 (Python, Lib/pickletools.py).
/// No class or function of Python's is looked up: OrderedDict, Counter, tensors and parameters are known by their
/// names, and any other name is an error. Throws UnpickleError.
c10::IValue unpickle(std::string_view pickle, const FindStorage& find_storage);

}  // namespace tandem::io
