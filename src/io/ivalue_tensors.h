// The tensors in a value of Python's.
#pragma once

#include <functional>

#include <ATen/core/ivalue.h>

namespace tandem::io {

/// A copy of nested tuples, lists and dicts, with `change` called on every tensor; what is shared stays shared.
c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& change);

}  // namespace tandem::io
