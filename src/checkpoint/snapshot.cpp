#include "checkpoint/snapshot.h"

#include <algorithm>
#include <cstring>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "io/scalar_types.h"

namespace tandem {

void Snapshot::begin() {
  used_ = 0;
  release_originals();
}

void Snapshot::release_originals() {
  on_cpu_.clear();
  on_devices_.clear();
  cpu_bytes_ = 0;
}

at::Tensor Snapshot::memory(std::size_t bytes) {
  if (used_ == memory_.size()) memory_.emplace_back();
  at::Tensor& next = memory_[used_++];
  if (!next.defined() || next.nbytes() != bytes) next = at::empty(static_cast<std::int64_t>(bytes), at::kByte);
  return next;
}

at::Tensor Snapshot::add(const at::Tensor& tensor) {
  const at::NoGradGuard no_grad;
  const at::Tensor elements = io::as_plain(tensor.detach().resolve_conj().resolve_neg());
  const at::Tensor from = elements.is_non_overlapping_and_dense() ? elements : elements.contiguous();
  const at::Tensor bytes = memory(from.nbytes());
  const auto in_bytes = [&](const at::TensorOptions& options) {
    return at::from_blob(
        bytes.mutable_data_ptr(), from.sizes(), from.strides(), [bytes](void*) {}, options.device(at::kCPU));
  };
  const at::Tensor to = in_bytes(from.options());
  (from.is_cpu() ? on_cpu_ : on_devices_).push_back({from, to});
  if (from.is_cpu()) cpu_bytes_ += from.nbytes();
  return in_bytes(tensor.options().requires_grad(false));
}

// Of the bytes of all tensors on the CPU, one after the other.
void Snapshot::copy_bytes(std::size_t begin, std::size_t end) const {
  std::size_t at = 0;
  for (const auto& [from, to] : on_cpu_) {
    const std::size_t bytes = from.nbytes();
    const std::size_t first = std::max(begin, at), last = std::min(end, at + bytes);
    if (first < last)
      std::memcpy(static_cast<char*>(to.mutable_data_ptr()) + (first - at),
                  static_cast<const char*>(from.const_data_ptr()) + (first - at), last - first);
    at += bytes;
  }
}

void Snapshot::copy_part(int rank, const std::vector<c10::Device>& devices) const {
  const auto index = static_cast<std::size_t>(rank);
  copy_bytes(cpu_bytes_ * index / devices.size(), cpu_bytes_ * (index + 1) / devices.size());
  const c10::Device mine = devices[index];
  // Ranks may share a device, and a rank's tensors may be on one that no rank has.
  const auto copies = [&](c10::Device device) {
    const auto first = std::find(devices.begin(), devices.end(), device);
    return first == devices.end() ? rank == 0 : device == mine && first - devices.begin() == rank;
  };
  for (const auto& [from, to] : on_devices_)
    if (copies(from.device())) at::Tensor(to).copy_(from);
}

}  // namespace tandem
