#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

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

/// How load_model takes weights, which may have been made for another model.
struct LoadModelOptions {
  /// Whether what is stored must be all that the module has and nothing else. Otherwise what fits is taken.
  bool strict = true;
  /// The module's name for a tensor, by the name that it is stored under; empty: the tensor is left. Tensors that get
  /// one name must agree, as tied weights. Without it names stay as they are.
  std::function<std::string(const std::string& stored)> rename = {};
};

/// A tensor that is stored with other sizes than the module's has.
struct OtherSizes {
  std::string name;                        ///< the module's
  std::string stored;                      ///< that in the file
  std::vector<std::int64_t> sizes;         ///< the module's
  std::vector<std::int64_t> stored_sizes;  ///< those in the file
};

/// What load_model did. Every tensor of the module is in one of the first three, under its first name, and every
/// stored one has been taken, or is in one of the last three.
struct LoadModelReport {
  std::vector<std::string> taken;       ///< the module's that have what was stored
  std::vector<std::string> missing;     ///< the module's that are not stored: they are as they were
  std::vector<OtherSizes> other_sizes;  ///< the module's are as they were
  std::vector<std::string> unknown;     ///< stored, and none of the module's
  std::vector<std::string> left;        ///< stored, and left by `rename`
};

/// Copies the weights at `path` into the parameters and buffers of `module`, converting types: those of a directory,
/// Tandem's or Python's (`pytorch_model.bin` too), or of one file of safetensors or torch.save's, in which dicts may
/// be within dicts ("model.fc.weight" is tensor "fc.weight" in dict "model"; what are no tensors is passed over).
/// Everything is read and compared before anything is copied. Throws CheckpointError that names the file and the tensor
/// when something is damaged, cannot be converted, or in strict mode is missing, not the module's, or of other sizes.
LoadModelReport load_model(torch::nn::Module& module, const std::string& path, const LoadModelOptions& options = {});

}  // namespace tandem::io
