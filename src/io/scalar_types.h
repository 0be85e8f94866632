// What tensors' types are called in Python's files.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

namespace tandem::io {

/// "uint16", as torch.uint16; empty for quantized types, whose tensors are more than their elements.
std::string python_name(at::ScalarType type);

/// Of the storages that have one: "FloatStorage"; empty for later types, whose storages are without a type.
std::string storage_name(at::ScalarType type);

/// The type of that name; nothing when there is none.
std::optional<at::ScalarType> type_of_python(std::string_view name);
std::optional<at::ScalarType> type_of_storage(std::string_view name);  ///< \copydoc type_of_python

/// Whether LibTorch makes other numbers of it, and it of others.
bool is_number(at::ScalarType type);

/// A view of a tensor's memory as elements of a type of that size that every kernel knows: LibTorch cannot copy some
/// types at all.
at::Tensor as_plain(const at::Tensor& tensor);

/// A copy, of any type. What is repeated in it (a stride of 0) stays repeated and takes no more memory.
at::Tensor copy_of(const at::Tensor& tensor);

}  // namespace tandem::io
