#include <array>
#include <cmath>

#include <ATen/Functions.h>

#include "self_test.h"
#include "tandem/comm/communicator.h"
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"

namespace tandem_tool {
namespace {

using tandem::comm::ReduceOp;

constexpr std::array kTypes{at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kByte};
constexpr std::array<std::int64_t, 4> kSizes{1, 1001, 65'536, 1'000'003};

// Whole numbers whose sums over the ranks every type has exactly.
std::int64_t value_of(int rank, std::int64_t at, int ranks) {
  const std::int64_t most = std::max(1, 200 / ranks);
  return (at * 7 + rank * 3 + at / 1000) % (most + 1);
}

at::Tensor make(std::int64_t size, at::ScalarType type, const std::function<std::int64_t(std::int64_t)>& value) {
  at::Tensor tensor = at::empty({size}, at::kLong);
  auto* values = tensor.mutable_data_ptr<std::int64_t>();
  for (std::int64_t at = 0; at < size; ++at) values[at] = value(at);
  return tensor.to(type);
}

// One type and size on one rank, with what it is to get.
class Check {
 public:
  Check(tandem::Accelerator& accelerator, at::ScalarType type, std::int64_t size)
      : accelerator_(accelerator),
        communicator_(accelerator.communicator()),
        ranks_(accelerator.world_size()),
        type_(type),
        size_(size) {}

  void all() {
    for (const auto& [op, name] : {std::pair{ReduceOp::sum, "sum"}, {ReduceOp::max, "max"}, {ReduceOp::min, "min"}}) {
      at::Tensor tensor = mine();
      communicator_.all_reduce(tensor, op);
      expect(tensor, reduced(op, size_), std::string("all_reduce ") + name);
    }
    broadcast_and_reduce();
    gather_and_scatter();
    communicator_.barrier();
  }

 private:
  std::int64_t value(int rank, std::int64_t at) const { return value_of(rank, at, ranks_); }

  at::Tensor of_rank(int rank, std::int64_t size) const {
    return make(size, type_, [&](std::int64_t at) { return value(rank, at); });
  }
  at::Tensor mine() const { return on_device(of_rank(accelerator_.rank(), size_)); }
  at::Tensor on_device(const at::Tensor& tensor) const { return tensor.to(accelerator_.device()); }

  at::Tensor reduced(ReduceOp op, std::int64_t size) const {
    return make(size, type_, [&](std::int64_t at) {
      std::int64_t result = value(0, at);
      for (int rank = 1; rank < ranks_; ++rank) {
        const std::int64_t other = value(rank, at);
        result = op == ReduceOp::sum   ? result + other
                 : op == ReduceOp::max ? std::max(result, other)
                                       : std::min(result, other);
      }
      return result;
    });
  }

  void broadcast_and_reduce() {
    const int last = ranks_ - 1;
    at::Tensor tensor = mine();
    communicator_.broadcast(tensor, last);
    expect(tensor, of_rank(last, size_), "broadcast");
    tensor = mine();
    communicator_.reduce(tensor, ReduceOp::sum, last);
    if (accelerator_.rank() == last) expect(tensor, reduced(ReduceOp::sum, size_), "reduce");
  }

  // Of smaller pieces, as each rank has those of all.
  void gather_and_scatter() {
    const std::int64_t piece = std::max<std::int64_t>(1, size_ / ranks_);
    const auto piece_of = [&](int rank) { return of_rank(rank, piece); };
    const at::Tensor mine = on_device(piece_of(accelerator_.rank()));
    const auto gathered = communicator_.all_gather(mine);
    const auto received = communicator_.all_to_all(std::vector<at::Tensor>(static_cast<std::size_t>(ranks_), mine));
    for (int rank = 0; rank < ranks_; ++rank) {
      expect(gathered[static_cast<std::size_t>(rank)], piece_of(rank), "all_gather");
      expect(received[static_cast<std::size_t>(rank)], piece_of(rank), "all_to_all");
    }
    const std::int64_t all = piece * ranks_, begin = piece * accelerator_.rank();
    const at::Tensor part = communicator_.reduce_scatter(on_device(of_rank(accelerator_.rank(), all)), ReduceOp::sum);
    expect(part, reduced(ReduceOp::sum, all).slice(0, begin, begin + piece), "reduce_scatter");
  }

  void expect(const at::Tensor& got, const at::Tensor& wanted, const std::string& what) const {
    if (at::equal(got.cpu(), wanted)) return;
    throw tandem::CollectiveError(what + " of " + std::to_string(wanted.numel()) + " elements of " +
                                  c10::toString(type_) + " gave a wrong result on rank " +
                                  std::to_string(accelerator_.rank()));
  }

  tandem::Accelerator& accelerator_;
  tandem::comm::Communicator& communicator_;
  const int ranks_;
  const at::ScalarType type_;
  const std::int64_t size_;
};

std::string run_collectives(const tandem::LaunchConfig& config) {
  tandem::launch(config, [](tandem::Accelerator& accelerator) {
    for (const at::ScalarType type : kTypes)
      for (const std::int64_t size : kSizes) Check(accelerator, type, size).all();
  });
  return "all_reduce, broadcast, reduce, all_gather, all_to_all, reduce_scatter and barrier; " +
         std::to_string(kTypes.size()) + " types, " + std::to_string(kSizes.size()) + " sizes";
}

}  // namespace

SelfTestPart test_collectives() { return {"collectives", run_collectives}; }

}  // namespace tandem_tool
