#include "backend/cuda/small_all_reduce.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include <ATen/Functions.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "comm/nccl/communicator.h"

namespace tandem::cuda {
namespace {

using comm::Communicator;
using comm::ReduceOp;

std::int64_t pattern_of(int from, int to) { return 1'000'003 * (from + 1) + 101 * (to + 1); }

// Each rank reads a pattern of its own from every other one.
bool reads(Communicator& peers, c10::Device device) {
  constexpr std::int64_t kElements = 4096;
  const auto pattern = [&](int from, int to) {
    return at::arange(kElements, at::dtype(at::kLong)).add(pattern_of(from, to));
  };
  std::vector<at::Tensor> sent;
  for (int to = 0; to < peers.world_size(); ++to) sent.push_back(pattern(peers.rank(), to).to(device));
  const auto received = peers.all_to_all(sent);
  bool right = true;
  for (int from = 0; from < peers.world_size(); ++from)
    right = at::equal(received[static_cast<std::size_t>(from)].cpu(), pattern(from, peers.rank())) && right;
  return right;
}

// Each rank writes its share of a sum to every other one.
bool writes(Communicator& peers, c10::Device device) {
  constexpr std::int64_t kElements = 64 * 1024;
  const std::int64_t ranks = peers.world_size();
  const at::Tensor count = at::arange(kElements, at::dtype(at::kLong));
  const at::Tensor value = count.add(peers.rank()).to(device);
  peers.all_reduce({value}, ReduceOp::sum);
  return at::equal(value.cpu(), count.mul(ranks).add(ranks * (ranks - 1) / 2));
}

// Nanoseconds of a call, the device's work included.
std::uint64_t time_of(Communicator& communicator, c10::Device device, std::size_t bytes) {
  using Clock = std::chrono::steady_clock;
  constexpr int kCalls = 20;
  const c10::impl::VirtualGuardImpl guard(device.type());
  const at::Tensor value =
      at::zeros({static_cast<std::int64_t>(bytes / sizeof(float))}, at::dtype(at::kFloat).device(device));
  communicator.all_reduce({value}, ReduceOp::sum);
  guard.synchronizeStream(guard.getStream(device));
  communicator.barrier();
  const auto begin = Clock::now();
  for (int call = 0; call < kCalls; ++call) communicator.all_reduce({value}, ReduceOp::sum);
  guard.synchronizeStream(guard.getStream(device));
  const auto end = Clock::now();
  return static_cast<std::uint64_t>(std::chrono::nanoseconds(end - begin).count()) / kCalls;
}

}  // namespace

bool all_agree(comm::RankGroup& group, int rank, bool mine) {
  const auto all = group.meet(rank, {.operation = "connect"}, mine);
  return std::all_of(all.begin(), all.end(), [](std::uint64_t one) { return one != 0; });
}

bool moves_bytes(Communicator& peers, comm::RankGroup& group, c10::Device device) {
  const bool read = reads(peers, device), written = writes(peers, device);
  return all_agree(group, peers.rank(), read && written);
}

std::size_t faster_up_to(Communicator& peers, Communicator& nccl, comm::RankGroup& group, c10::Device device) {
  constexpr std::size_t kSmallest = 8 * 1024;
  std::size_t best = 0;
  for (std::size_t bytes = kSmallest; bytes <= comm::nccl::kSmallAllReduce; bytes *= 4) {
    const bool faster = time_of(peers, device, bytes) <= time_of(nccl, device, bytes);
    // Rank 0's clock decides: one way for all.
    const auto all = group.meet(peers.rank(), {.operation = "connect"}, faster);
    if (all.front() == 0) return best;
    best = bytes;
  }
  return best;
}

}  // namespace tandem::cuda
