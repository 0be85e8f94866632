// Files of torch.save as PyTorch wrote them before 1.6, and still does with _use_new_zipfile_serialization=False.
#pragma once

#include <string_view>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

namespace tandem::io {

/// Whether a file that begins so is one: 32 bytes are enough.
bool is_of_old_format(std::string_view begin);

/// The value in such a file. Throws UnpickleError.
c10::IValue old_pickle_in(const at::Tensor& file);

}  // namespace tandem::io
