// Files that are read whole, once: the tensors in them share that memory.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include "io/read_file.h"
#include "tandem/io/safetensors.h"

namespace tandem::io {

/// Memory for so many bytes of a file. Throws CheckpointError when there is none.
at::Tensor room_for(std::uint64_t bytes, const std::string& shown);

/// Throws CheckpointError when the file does not begin as a zip archive, so that no other is read as a whole.
void check_is_archive(const std::string& path, const std::string& shown);

/// A file's bytes. Throws CheckpointError that names it as `shown`.
at::Tensor load_bytes(const std::string& path, const std::string& shown, Links links = Links::refuse);

/// What a file of torch.save with these bytes holds. As read_pickle.
c10::IValue pickle_in(const at::Tensor& file, const std::string& shown);

/// The tensors of a safetensors file with these bytes. As load_safetensors.
NamedTensors safetensors_in(const at::Tensor& file, const std::string& shown);

/// `bytes` of `file` from `begin` on, for elements of `element_bytes`: that memory, with a version counter of its own;
/// a copy where elements may not lie.
at::Tensor part_of(const at::Tensor& file, std::uint64_t begin, std::uint64_t bytes, std::uint64_t element_bytes);

}  // namespace tandem::io
