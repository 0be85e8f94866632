#pragma once

#include <memory>

#include <ATen/core/Tensor.h>

namespace tandem::nn {

/// A pointer for a storage that is copied before LibTorch writes through it, or hands it out to be written through.
/// `keeper` keeps the memory alive. While it is the storage's, another pointer to the same context must be kept:
/// LibTorch gives the last one the memory instead of a copy.
at::DataPtr copy_on_write(void* data, std::shared_ptr<void> keeper, c10::Device device);

/// What `lent_copy` copies: a tensor on the memory of `of`, which it keeps alive. Not to be written to or given away.
at::Tensor lendable(const at::Tensor& of);

/// A tensor on the memory of `lendable`, until LibTorch writes to it, or hands out a pointer to write through: then it
/// gets memory of its own, with the same elements. So ranks can refer to one memory, and none sees what another one
/// writes. (LibTorch's copy-on-write storage.)
///
/// `lendable` outlives it, or `end_loan` comes before: the last tensor on a copy-on-write storage takes the memory over
/// instead of copying it. And each thread lends for itself: dropping the last two at the same time, LibTorch 2.11 may
/// lock a mutex that is gone.
at::Tensor lent_copy(const at::Tensor& lendable);

/// Whether `tensor` has no memory of its own yet.
bool is_lent(const at::Tensor& tensor);

/// Gives a lent tensor that others than the caller refer to memory of its own.
void end_loan(const at::Tensor& lent);

/// Whether `tensor` refers to `memory`.
inline bool refers_to(const at::Tensor& tensor, const at::Tensor& memory) {
  return tensor.const_data_ptr() == memory.const_data_ptr();
}

/// A tensor on the memory of `tensor`, lent or not, for kernels that only read, but ask for memory to write to. It does
/// not keep the memory alive.
at::Tensor readable(const at::Tensor& tensor);

}  // namespace tandem::nn
