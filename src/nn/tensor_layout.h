#pragma once

#include <cstring>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>

namespace tandem::nn {

/// Whether two tensors of the same sizes lie in memory alike, so that kernels may run over both in order. Strides of
/// dimensions of size 1 have no say in it.
inline bool same_order_in_memory(const at::Tensor& a, const at::Tensor& b) {
  const auto sizes = a.sizes(), strides = a.strides(), others = b.strides();
  if (sizes != b.sizes()) return false;
  for (std::size_t dim = 0; dim < sizes.size(); ++dim)
    if (sizes[dim] != 1 && strides[dim] != others[dim]) return false;
  return true;
}

/// Whether two CPU tensors lie dense in memory alike and are the same bits: NaN is equal to itself, 0 is not -0.
inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.layout() == at::kStrided && a.is_non_overlapping_and_dense() && a.scalar_type() == b.scalar_type() &&
         same_order_in_memory(a, b) && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

/// A tensor on memory of `of`, which is no view for autograd (Optimizer::zero_grad refuses those) and counts its own
/// versions.
inline at::Tensor tensor_on(const at::Tensor& of, std::int64_t offset, at::IntArrayRef sizes, at::IntArrayRef strides) {
  return at::empty({0}, of.options().requires_grad(false)).set_(of.storage(), offset, sizes, strides);
}

/// One on all of the memory of `tensor`, in its shape.
inline at::Tensor alias_of(const at::Tensor& tensor) {
  return tensor_on(tensor, tensor.storage_offset(), tensor.sizes(), tensor.strides());
}

/// `tensor` without its repetitions in the dims in which `like`, of the same sizes, is expanded.
inline at::Tensor without_repetitions(at::Tensor tensor, const at::Tensor& like) {
  for (std::int64_t dim = 0; dim < like.dim(); ++dim)
    if (like.stride(dim) == 0 && like.size(dim) > 1) tensor = tensor.detach().narrow(dim, 0, 1);
  return tensor;
}

/// Tensors that have all numbers of `tensor`, dense ones and each element once: of an expanded tensor one row, of a
/// sparse one its indices and values. What is written to them it shows.
inline std::vector<at::Tensor> memory_of(const at::Tensor& tensor) {
  switch (tensor.layout()) {
    case at::kSparse: return {tensor._indices(), tensor._values()};
    case at::kSparseCsr:
    case at::kSparseBsr: return {tensor.crow_indices(), tensor.col_indices(), tensor.values()};
    case at::kSparseCsc:
    case at::kSparseBsc: return {tensor.ccol_indices(), tensor.row_indices(), tensor.values()};
    case at::kStrided: break;
    default: return {tensor};
  }
  return {without_repetitions(tensor, tensor)};
}

/// Those of several tensors.
inline std::vector<at::Tensor> memory_of(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> all;
  for (const at::Tensor& tensor : tensors)
    for (at::Tensor& part : memory_of(tensor)) all.push_back(std::move(part));
  return all;
}

}  // namespace tandem::nn
