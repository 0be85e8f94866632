#pragma once

#include <string>

#include <ATen/core/ivalue.h>

#include "tandem/io/write_bytes.h"

/// \file
/// Files of Python's torch.save: zip archives of a pickle and the bytes of its tensors (PyTorch,
/// torch/serialization.py). Values are IValues: None, bool, int, double, str, tuple, list, dict (keys are str or int),
/// tensors.
namespace tandem::io {

/// Writes `value` as a file that `torch.load(file, weights_only=True)` opens. Tensors must be dense; lists and dicts
/// are those of any elements. `shown` names the file in errors. Throws CheckpointError.
void write_pickle(const WriteBytes& write, const std::string& shown, const c10::IValue& value);

/// Reads a file of torch.save. Its tensors are in one piece of CPU memory, which stays as long as one of them.
/// OrderedDict and Counter become dicts, parameters tensors. Nothing of the file is run: it may be a stranger's. Throws
/// CheckpointError that names the file (as `shown`, if that is given) when it is missing, damaged, or needs any other
/// class or function of Python's.
c10::IValue read_pickle(const std::string& path, const std::string& shown = {});

}  // namespace tandem::io
