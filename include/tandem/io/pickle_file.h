#pragma once

#include <string>

#include <ATen/core/ivalue.h>

#include "tandem/io/write_bytes.h"

/// \file
/// Files of Python's torch.save: zip archives of a pickle and the bytes of its tensors (PyTorch,
/// torch/serialization.py). Values are IValues: None, bool, int, double, complex, str, device, tuple, list, dict (keys
/// are texts, numbers or devices), tensors.
namespace tandem::io {

/// Writes `value` as a file that `torch.load(file, weights_only=True)` opens, and read_pickle. Tensors must be dense,
/// of any type that is not quantized; a text that is no UTF-8 is `bytes` in Python. `shown` names the file in errors.
/// Throws CheckpointError that says where in `value` something cannot be written, before `write` is called.
void write_pickle(const WriteBytes& write, const std::string& shown, const c10::IValue& value);

/// Reads a file of torch.save, also of the format before PyTorch 1.6. Its tensors are in one piece of CPU memory, which
/// stays as long as one of them. OrderedDict and Counter become dicts, parameters and NumPy's arrays tensors, NumPy's
/// numbers plain ones, bytes texts. Nothing of the file is run: it may be a stranger's. Throws
/// CheckpointError that names the file (as `shown`, if that is given) when it is missing, damaged, or needs any other
/// class or function of Python's.
c10::IValue read_pickle(const std::string& path, const std::string& shown = {});

}  // namespace tandem::io
