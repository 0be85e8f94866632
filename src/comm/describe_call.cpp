#include "comm/describe_call.h"

#include <algorithm>

#include "core/word_hash.h"

namespace tandem::comm {

CallRecord describe_call(const char* operation, at::TensorList tensors, SizeCheck check) {
  CallRecord record{.operation = operation};
  record.tensors = static_cast<std::int32_t>(tensors.size());
  WordHash signature;
  const std::size_t first_checked = check == SizeCheck::all ? 0 : 1;
  for (const at::Tensor& tensor : tensors) {
    signature.add(static_cast<std::uint64_t>(tensor.scalar_type()));
    if (check == SizeCheck::none) continue;
    if (check == SizeCheck::elements) {
      signature.add(static_cast<std::uint64_t>(tensor.numel()));
      continue;
    }
    const auto sizes = tensor.sizes();
    // A 0-dim tensor is gathered as if it had one row.
    signature.add(first_checked == 1 ? std::max<std::size_t>(sizes.size(), 1) : sizes.size());
    for (std::size_t dim = first_checked; dim < sizes.size(); ++dim)
      signature.add(static_cast<std::uint64_t>(sizes[dim]));
    if (check == SizeCheck::all) record.elements += tensor.numel();
  }
  record.signature = signature.value();
  if (!tensors.empty()) {
    const auto sizes = tensors.front().sizes();
    record.type = c10::toString(tensors.front().scalar_type());
    record.dims = static_cast<std::int8_t>(std::min<std::size_t>(sizes.size(), 127));
    for (std::size_t dim = 0; dim < std::min(sizes.size(), record.sizes.size()); ++dim)
      record.sizes[dim] = static_cast<std::int32_t>(std::min<std::int64_t>(sizes[dim], INT32_MAX));
  }
  return record;
}

}  // namespace tandem::comm
