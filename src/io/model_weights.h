// A model's weights among the files of a checkpoint. `stem` is "model", or "model_1" and so on for further models.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <torch/nn/module.h>

#include "io/checkpoint_source.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/io/model_files.h"
#include "tandem/io/safetensors.h"

namespace tandem::io {

/// "model-00001-of-00003.safetensors", counted from 1.
std::string shard_name(const std::string& stem, std::size_t number, std::size_t count);

/// Parameters and buffers of `module`, each once: tied weights under their first name.
NamedTensors weights_of(const torch::nn::Module& module);

/// The files that hold `weights`, in the layout of Hugging Face. They refer to the tensors. `directory` is for errors.
/// Throws ConfigError when `max_shard_bytes` is 0.
std::vector<NewFile> weight_files(const std::string& stem, const NamedTensors& weights, std::uint64_t max_shard_bytes,
                                  const std::string& directory);

/// Tensors by name, and the file that each is in, as it is shown.
struct StoredWeights {
  std::string directory;
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> files;
};

/// Reads them: `model.safetensors`, its shards, or Python's `pytorch_model.bin`. Throws CheckpointError.
StoredWeights read_weights(CheckpointSource& source, const std::string& stem);

/// Reads the weights that load_model takes: those of a directory, or of one file. Throws CheckpointError.
StoredWeights read_weights_at(const std::string& path);

/// What load_model is to do.
struct LoadPlan {
  LoadModelReport report;
  std::function<void()> copy;  ///< copies what is taken; it keeps the tensors
};

/// Compares, and copies nothing. Of the module's tensors only those that are `wanted_here` will be copied; all without
/// it. Throws CheckpointError.
LoadPlan plan_load(const StoredWeights& stored, torch::nn::Module& module, const LoadModelOptions& options,
                   const std::function<bool(const at::Tensor&)>& wanted_here = {});

/// Checks that `stored` is all that `module` needs, and nothing else, and returns what copies it there: all, or
/// what is `wanted_here`. Throws CheckpointError that names the file and the tensor otherwise.
std::function<void()> prepare_load(const StoredWeights& stored, torch::nn::Module& module,
                                   const std::function<bool(const at::Tensor&)>& wanted_here = {});

}  // namespace tandem::io
