#pragma once

#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include "tandem/io/write_bytes.h"
#include "tandem/nn/named_tensors.h"

/// \file
/// The safetensors file format (github.com/huggingface/safetensors): an 8-byte little-endian header length, a JSON
/// header {name: {dtype, shape, data_offsets}}, then the tensors' bytes without gaps.
namespace tandem::io {

using nn::NamedTensors;

/// Writes `tensors` (dense, any device) to `path`: to a temporary file beside it, synced and renamed, so that a failure
/// leaves what was there. Links are followed. A device, a FIFO (whose reader is waited for) and a descriptor of the
/// process (/dev/stdout) are written to in one stream; a file that cannot be renamed to, since it is a mount point or
/// its folder cannot be written, is overwritten. Throws CheckpointError when a name comes twice, a tensor cannot be
/// stored or the file cannot be written.
void save_safetensors(const std::string& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata = {});

/// Gives `write` the bytes of such a file in their order. `shown` names the file in errors. Throws as save_safetensors.
void write_safetensors(const WriteBytes& write, const std::string& shown, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// Throws CheckpointError, as write_safetensors would, when `tensors` cannot be written: a name that comes twice or is
/// no UTF-8, a type that the format does not have.
void check_safetensors(const std::string& shown, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// Reads all tensors of `path`, in the order in which they lie there, into one piece of CPU memory, which stays as long
/// as one of them. Throws CheckpointError that names the file (as `shown`, if that is given) and the field when it is
/// missing, damaged or no such file.
NamedTensors load_safetensors(const std::string& path, const std::string& shown = {});

/// Throws ConfigError when save_safetensors could not write `path`. Opens no device and no FIFO, leaves nothing behind
/// and an existing file untouched.
void check_writable(const std::string& path);

}  // namespace tandem::io
