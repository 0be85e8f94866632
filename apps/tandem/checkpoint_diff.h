// Compares checkpoints and files of them, to the bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "io/checkpoint_source.h"
#include "stored_tensors.h"
#include "value_diff.h"

namespace tandem_tool {

/// Returns how many tensors are in both. Throws tandem::CheckpointError.
std::int64_t compare_weights(Partings& partings, const StoredTensors& first, const StoredTensors& second);

/// Compares the values in two files of torch.save with these bytes. Unless `everything`, without flags that
/// names_the_machine. Throws tandem::CheckpointError that names one as `shown` or `other_shown`.
void compare_pickles(Partings& partings, const at::Tensor& first, const std::string& shown, const at::Tensor& second,
                     const std::string& other_shown, bool everything);

/// Compares two directories with the files of states or of models, and returns how many files, or models, are in both.
/// Adds a sentence to `notes` for each file that differs and is not as its manifest says. Throws
/// tandem::CheckpointError.
std::int64_t compare_checkpoints(Partings& partings, std::vector<std::string>& notes, const std::string& first,
                                 const std::string& second, bool everything);

/// Whether a directory has weights of the model "model", "model_1" and so on.
bool has_model(const tandem::io::CheckpointSource& source, const std::string& stem);

/// The JSON in a file's bytes. Throws tandem::CheckpointError that names it as `shown`.
nlohmann::json json_in(const at::Tensor& file, const std::string& shown);

/// Whether `flag` of train says where a run runs, reads and writes, not what it computes.
bool names_the_machine(const std::string& flag);

}  // namespace tandem_tool
