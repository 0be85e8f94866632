#include "data/device_copies.h"

#include <utility>

#include <c10/core/StreamGuard.h>

namespace tandem::data {

std::optional<RankStep> DeviceCopies::next(Take take, Ready ready) {
  if (!ahead_) start(take);
  Copied mine = *std::exchange(ahead_, std::nullopt);
  if (mine.error) std::rethrow_exception(mine.error);
  if (!mine.step) return std::nullopt;
  if (!mine.step->info.ends_epoch() && ready()) start(take);
  // The memory belongs to the copies' stream: who frees it must know that this one still uses it.
  const c10::Stream compute = stream_.compute();
  mine.step->batch.for_each_tensor([&](at::Tensor& tensor) {
    if (tensor.device() == device_) tensor.record_stream(compute);
  });
  stream_.let_compute_follow(std::move(*mine.done));
  return std::move(mine.step);
}

void DeviceCopies::start(Take take) {
  Copied& next = ahead_.emplace();
  try {
    next.step = take();
    if (!next.step) return;
    const c10::StreamGuard on(stream_.stream());
    next.step->batch.for_each_tensor([&](at::Tensor& tensor) { tensor = copy(tensor); });
    next.done = stream_.mark();
  } catch (...) {
    next.error = std::current_exception();
  }
}

at::Tensor DeviceCopies::copy(const at::Tensor& tensor) const {
  const bool pins = pin_ && tensor.is_cpu() && tensor.layout() == at::kStrided && tensor.numel() > 0;
  return (pins ? tensor.pin_memory() : tensor).to(device_, /*non_blocking=*/true);
}

}  // namespace tandem::data
