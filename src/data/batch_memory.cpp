#include "tandem/data/detail/batch_memory.h"

#include <ATen/Functions.h>

namespace tandem::data::detail {
namespace {

// Whether stacking gives plain memory, to which copying is worth more than it costs.
bool moves(const at::Tensor& tensor) {
  constexpr std::size_t kSmall = 1 << 14;  // bytes
  return tensor.layout() == at::kStrided && tensor.nbytes() >= kSmall && tensor.is_cpu() && !tensor.requires_grad() &&
         !tensor.is_quantized() && !tensor.is_conj() && !tensor.is_neg() &&
         tensor.suggest_memory_format() == at::MemoryFormat::Contiguous;
}

}  // namespace

void BatchMemory::take_part(std::size_t part, at::Tensor& tensor) {
  const bool first = taken_ == 0;
  if (first) parts_.emplace_back();
  if (part >= parts_.size() || !moves(tensor)) return;
  auto& [batch, taken] = parts_[part];
  if (first) {
    std::vector<std::int64_t> shape = tensor.sizes().vec();
    shape.insert(shape.begin(), samples_);
    batch = at::empty(shape, tensor.options());
  }
  if (!batch.defined() || batch.scalar_type() != tensor.scalar_type() || batch.sizes().slice(1) != tensor.sizes())
    return;
  tensor = batch.select(0, taken_).copy_(tensor);
  taken += 1;
}

std::optional<at::Tensor> BatchMemory::whole(std::size_t part, std::size_t samples) const {
  if (part >= parts_.size() || parts_[part].taken != samples) return std::nullopt;
  return parts_[part].tensor;
}

}  // namespace tandem::data::detail
