// Copies of tensors that all ranks make together.
#pragma once

#include <cstddef>
#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem {

/// A copy of tensors, for as long as the training goes on with them. Its memory serves the next one too.
class Snapshot {
 public:
  /// Begins anew. What was copied before must not be used any more.
  void begin();

  /// A tensor on the CPU that will have the values of `tensor`. One rank.
  at::Tensor add(const at::Tensor& tensor);

  /// Copies this rank's part: of tensors on the CPU as many bytes as the others, of others what is on its device. All
  /// ranks do so, at the same time.
  void copy_part(int rank, const std::vector<c10::Device>& devices) const;

  /// Lets go of what was copied, when all ranks have. One rank.
  void release_originals();

 private:
  struct Copy {
    at::Tensor from, to;
  };

  at::Tensor memory(std::size_t bytes);
  void copy_bytes(std::size_t begin, std::size_t end) const;

  std::vector<at::Tensor> memory_;  // in the order of use
  std::size_t used_ = 0;            // of it
  std::vector<Copy> on_cpu_, on_devices_;
  std::size_t cpu_bytes_ = 0;
};

}  // namespace tandem
