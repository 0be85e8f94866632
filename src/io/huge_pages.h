#pragma once

#include <sys/mman.h>

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace tandem::io {

/// Asks for huge pages behind the memory of a large tensor that has not been written yet. The kernel clears each page
/// at its first write: 0.07 s for 800 MB in huge pages, 0.32 s in small ones.
inline void prefer_huge_pages(const at::Tensor& tensor) {
  constexpr std::uintptr_t kPage = 2 << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + tensor.nbytes()) / kPage * kPage;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace tandem::io
