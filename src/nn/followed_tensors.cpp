#include "nn/followed_tensors.h"

#include <algorithm>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "comm/describe_call.h"
#include "comm/rank_group.h"
#include "nn/tensor_layout.h"

namespace tandem::nn {
namespace {

// Writes only what differs: a write makes a graph that has saved the tensor useless.
void take_over(const at::Tensor& tensor, const at::Tensor& from) {
  if (same_bits(tensor, from)) return;
  const auto parts = memory_of(tensor), others = memory_of(from);
  const auto same_sizes = [](const at::Tensor& a, const at::Tensor& b) { return a.sizes() == b.sizes(); };
  if (!std::equal(parts.begin(), parts.end(), others.begin(), others.end(), same_sizes)) {  // of sparse tensors
    tensor.copy_(from);
    return;
  }
  for (std::size_t k = 0; k < parts.size(); ++k)
    if (!same_bits(parts[k], others[k])) parts[k].copy_(others[k]);
}

std::size_t references_of_storage(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().use_count() : 0;
}

}  // namespace

void FollowedTensors::watch(std::vector<at::Tensor> buffers, std::vector<at::Tensor> in_any_case) {
  all_.clear();
  left_any_ = false;
  // Moved, so that these lists do not count as references.
  for (at::Tensor& tensor : buffers) all_.push_back({std::move(tensor), false, 0, 0});
  for (at::Tensor& tensor : in_any_case) all_.push_back({std::move(tensor), true, 0, 0});
  forget_references();
}

void FollowedTensors::forget_references() {
  for (Followed& followed : all_) {
    followed.tensor_references = followed.tensor.use_count();
    followed.storage_references = references_of_storage(followed.tensor);
  }
}

// Whether a graph may have saved it.
bool FollowedTensors::waits(Followed& followed) {
  const std::size_t of_tensor = followed.tensor.use_count(), of_storage = references_of_storage(followed.tensor);
  const bool more = of_tensor > followed.tensor_references || of_storage > followed.storage_references;
  followed.tensor_references = std::min(followed.tensor_references, of_tensor);
  followed.storage_references = std::min(followed.storage_references, of_storage);
  return more && !followed.in_any_case;
}

// The root's own values stay as they are, so it waits for nothing.
std::vector<bool> FollowedTensors::waiting(bool is_root) {
  std::vector<bool> flags;
  for (Followed& followed : all_) flags.push_back(waits(followed) && !is_root);
  return flags;
}

void FollowedTensors::follow(comm::Communicator& communicator, comm::RankGroup& group, int root) {
  if (all_.empty() || communicator.world_size() == 1) return;
  const at::NoGradGuard no_grad;
  if (communicator.shares_memory() && group.place().nodes == 1)
    follow_in_shared_memory(communicator, group, root);
  else
    follow_by_broadcast(communicator, group, root);
}

// Reads the root's where they are.
void FollowedTensors::follow_in_shared_memory(comm::Communicator& communicator, comm::RankGroup& group, int root) {
  comm::CallRecord record{.operation = "broadcast", .root = root, .tensors = static_cast<std::int32_t>(all_.size())};
  struct Mine {
    const std::vector<Followed>& all;
    std::vector<bool> waiting;
  };
  const Mine mine{all_, waiting(communicator.rank() == root)};
  const comm::RankGroup::Call call(group, communicator.rank(), record, &mine);
  left_any_ = false;
  for (int rank = 0; rank < communicator.world_size(); ++rank) {
    const auto& theirs = call.payload<Mine>(rank).waiting;
    left_any_ = left_any_ || std::find(theirs.begin(), theirs.end(), true) != theirs.end();
  }
  if (communicator.rank() == root) return;
  const auto& main = call.payload<Mine>(root).all;
  for (std::size_t i = 0; i < all_.size(); ++i)
    if (!mine.waiting[i]) take_over(all_[i].tensor, main[i].tensor);
}

void FollowedTensors::follow_by_broadcast(comm::Communicator& communicator, comm::RankGroup& group, int root) {
  const auto mine = waiting(communicator.rank() == root);
  const bool any = std::find(mine.begin(), mine.end(), true) != mine.end();
  const auto all = group.meet(communicator.rank(), {.operation = "broadcast", .root = root}, any ? 1 : 0);
  left_any_ = std::any_of(all.begin(), all.end(), [](std::uint64_t one) { return one != 0; });
  std::vector<at::Tensor> tensors;
  for (std::size_t i = 0; i < all_.size(); ++i)
    for (const at::Tensor& part : memory_of(all_[i].tensor)) tensors.push_back(mine[i] ? at::empty_like(part) : part);
  communicator.broadcast(tensors, root);
}

}  // namespace tandem::nn
