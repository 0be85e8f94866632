// Files that are read whole, once: the tensors in them share that memory.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include "io/read_file.h"
#include "tandem/io/safetensors.h"

namespace tandem::io {

inline constexpr std::uint64_t kLargestElement = 16;  ///< of a tensor, in bytes

/// Memory for so many bytes of a file. Throws CheckpointError when there is none.
at::Tensor room_for(std::uint64_t bytes, const std::string& shown);

/// Whether the file begins as one of torch.save's. Throws CheckpointError when it cannot be read.
bool is_pickle_file(const std::string& path, const std::string& shown);

/// Throws CheckpointError when the file does not begin as one of torch.save's, so that no other is read as a whole.
void check_is_pickle_file(const std::string& path, const std::string& shown, Links links = Links::refuse);

/// A file's bytes. Throws CheckpointError that names it as `shown`.
at::Tensor load_bytes(const std::string& path, const std::string& shown, Links links = Links::refuse);

/// What a file of torch.save with these bytes holds. As read_pickle.
c10::IValue pickle_in(const at::Tensor& file, const std::string& shown);

/// The tensors of a safetensors file with these bytes. As load_safetensors.
NamedTensors safetensors_in(const at::Tensor& file, const std::string& shown);

/// The tensors of a file of torch.save with these bytes that is a dict of them by name. Throws CheckpointError.
NamedTensors pickled_tensors_in(const at::Tensor& file, const std::string& shown);

/// The same of one in which dicts may be within dicts: names are then joined by dots. What are no tensors is passed
/// over. Throws CheckpointError when there is none at all.
NamedTensors nested_tensors_in(const at::Tensor& file, const std::string& shown);

/// `bytes` of `file` from `begin` on, for elements of `element_bytes`: that memory, with a version counter of its own;
/// a copy where elements may not lie.
at::Tensor part_of(const at::Tensor& file, std::uint64_t begin, std::uint64_t bytes, std::uint64_t element_bytes);

}  // namespace tandem::io
