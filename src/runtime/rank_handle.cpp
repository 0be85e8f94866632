#include "tandem/runtime/rank_handle.h"

#include <algorithm>
#include <cstdio>

#include <ATen/Functions.h>

#include "comm/check_tensors.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {

at::Tensor RankHandle::gather_tensor(const at::Tensor& tensor) {
  auto parts = context_.communicator->all_gather(tensor);
  return tensor.dim() == 0 ? at::stack(parts) : at::cat(parts);
}

at::Tensor RankHandle::clone_for_reduction(const at::Tensor& tensor) {
  if (tensor.defined()) comm::check_dense(tensor, tensor.device(), "reduce");  // others cannot be copied so
  return tensor.detach().clone(at::MemoryFormat::Contiguous);
}

at::Tensor RankHandle::pad_tensor(const at::Tensor& tensor, std::int64_t dim, double value, bool pad_first) {
  const bool has_dim = dim < tensor.dim() && dim >= -tensor.dim() && tensor.dim() > 0;
  const std::int64_t size = has_dim ? tensor.size(dim) : 0;
  const auto sizes = gather_objects(size);
  const std::int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  if (!has_dim || longest == size) return tensor;
  auto shape = tensor.sizes().vec();
  shape[static_cast<std::size_t>(dim < 0 ? dim + tensor.dim() : dim)] = longest - size;
  const at::Tensor padding = at::full(shape, value, tensor.options());
  return pad_first ? at::cat({padding, tensor}, dim) : at::cat({tensor, padding}, dim);
}

bool RankHandle::check_trigger() {
  const trace::Range range(trace::Event::collective);
  const comm::CallRecord record{.operation = comm::Operation::check_trigger};
  const auto triggers = context_.group->meet(rank(), record, std::exchange(trigger_, false) ? 1 : 0);
  return std::any_of(triggers.begin(), triggers.end(), [](std::uint64_t set) { return set != 0; });
}

RankHandle::Share RankHandle::share_of(std::size_t size, bool padding) const {
  const auto ranks = static_cast<std::size_t>(world_size());
  const auto index = static_cast<std::size_t>(rank());
  const std::size_t longer = size % ranks;  // ranks that get one more
  const std::size_t begin = index * (size / ranks) + std::min(index, longer);
  const std::size_t end = begin + size / ranks + (index < longer ? 1 : 0);
  const std::size_t longest = size / ranks + (longer > 0 ? 1 : 0);
  return {begin, end, padding && size > 0 ? longest - (end - begin) : 0};
}

at::Tensor RankHandle::split_between_ranks(const at::Tensor& rows, bool padding) const {
  if (rows.dim() == 0) throw DataError("split_between_ranks needs a tensor with rows (dim 0), got a 0-dim tensor");
  const auto [begin, end, repeat] = share_of(static_cast<std::size_t>(rows.size(0)), padding);
  const at::Tensor share = rows.slice(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
  if (repeat == 0) return share;
  return at::cat({share, rows.slice(0, -1).repeat_interleave(static_cast<std::int64_t>(repeat), 0)});
}

void RankHandle::check_root(int root, const char* operation) const { comm::check_root(root, world_size(), operation); }

void RankHandle::write_out(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace tandem
