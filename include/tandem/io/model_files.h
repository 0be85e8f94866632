#pragma once

#include <cstdint>
#include <string>

#include <torch/nn/module.h>

#include "tandem/io/safetensors.h"

/// \file
/// A model's weights as a directory in the layout of Hugging Face and Accelerate: `model.safetensors`, or for large
/// models `model-00001-of-00003.safetensors` and so on, with `model.safetensors.index.json` that says where each tensor
/// is. Names are the module's, which are PyTorch's.
namespace tandem::io {

/// How the weights of a model are laid out.
struct ModelFileOptions {
  /// Largest file, but for a tensor that is larger by itself; as Accelerate's max_shard_size.
  std::uint64_t max_shard_bytes = 10'000'000'000;
};

/// Writes parameters and buffers of `module` as the directory `directory`, which is a checkpoint as CheckpointWriter's:
/// whole or not there, and replaced as a whole. (A mount point cannot be replaced, and is an error before anything is
/// written; a directory in it can.) Tied weights are stored once, under their first name. Throws CheckpointError;
/// ConfigError when `max_shard_bytes` is 0.
void save_model(const torch::nn::Module& module, const std::string& directory, const ModelFileOptions& options = {});

/// Copies the weights of `directory`, Tandem's or Python's (`pytorch_model.bin` too), into the parameters and buffers
/// of `module`, converting types. Everything is read and compared before anything is copied. Throws CheckpointError
/// that names the file and the tensor when something is missing, not the module's, of another shape, or damaged.
void load_model(torch::nn::Module& module, const std::string& directory);

}  // namespace tandem::io
