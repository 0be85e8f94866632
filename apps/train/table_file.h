// Tables of numbers: safetensors files with the tensors "inputs" and "targets".
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "options.h"

namespace train {

/// Samples with their targets.
struct Table {
  at::Tensor inputs;         ///< float32 [N, …], all finite
  at::Tensor targets;        ///< labels int64 [N], or numbers float32 [N, K], all finite
  std::int64_t outputs = 0;  ///< classes, or K

  bool has_labels() const { return targets.dim() == 1; }
  std::int64_t size() const { return inputs.size(0); }
};

/// Those that are trained on, and those that the network is judged by.
struct Tables {
  Table train{}, val{};
  std::string data{};  ///< how many samples there are, and a fingerprint of them, and of which are judged by; empty
                       ///< where no checkpoint is written or read
};

/// Reads what --data-file names, and --val-file; without that, --val-split of the samples goes to the validation, drawn
/// from the seed. Throws tandem::ConfigError that names the file and the tensor.
Tables read_tables(const Options& options);

}  // namespace train
