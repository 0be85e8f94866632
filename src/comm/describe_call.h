#pragma once

#include <ATen/core/Tensor.h>

#include "comm/call_record.h"

namespace tandem::comm {

/// Which sizes have to be equal on all ranks.
enum class SizeCheck : std::uint8_t {
  all,                ///< every dimension
  all_but_first_dim,  ///< gathers: ranks may differ in dim 0 (0-dim counts as [1])
  elements,           ///< their number only
  none                ///< types only
};

/// Describes a call on `tensors`.
CallRecord describe_call(const char* operation, at::TensorList tensors, SizeCheck check = SizeCheck::all);

}  // namespace tandem::comm
