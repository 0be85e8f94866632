// Reads pickles of plain values and tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
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

inline constexpr std::uint64_t kMostPickleBytes = 64 << 20;  ///< without the tensors
inline constexpr int kDeepestValues = 64;                    ///< in each other, with the innermost

/// Whether dicts of IValues can have it as a key, and Tandem's files too.
bool is_key(const c10::IValue& value);

/// The storage `key` as a tensor of bytes; it must have `bytes` of them. Throws UnpickleError.
using FindStorage = std::function<at::Tensor(const std::string& key, std::uint64_t bytes)>;

/// Sizes of a storage that a pickle's tensors refer to.
struct PickledStorage {
  std::uint64_t bytes = 0, element_bytes = 1;
};

/// What a pickle describes, by the opcodes of Python's pickle protocols 2 to 5 (Python, Lib/pickletools.py). No class
/// or function of Python's is looked up: what a state of PyTorch's is made of is known by its names, and any other name
/// is an error.
class Unpickled {
 public:
  /// Parses the pickle at the beginning of `bytes`, which stay as long as this object. Throws UnpickleError.
  explicit Unpickled(std::string_view bytes);
  ~Unpickled();
  Unpickled(const Unpickled&) = delete;
  Unpickled& operator=(const Unpickled&) = delete;

  /// Bytes of the pickle: another may follow.
  std::size_t bytes() const;

  /// By key.
  const std::map<std::string, PickledStorage>& storages() const;

  /// The value, whose tensors are in the storages. Throws UnpickleError.
  c10::IValue value(const FindStorage& find_storage) const;

 private:
  class Machine;
  const std::unique_ptr<Machine> machine_;
};

}  // namespace tandem::io
