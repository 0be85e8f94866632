// Sums over logical shards that take one order on any number of ranks.
#include "comm/tree_sum.h"

#include <array>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include "comm/rank_group.h"
#include "comm/shared_memory_communicator.h"
#include "support/catch.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::comm;

namespace {

constexpr int kShards = 8;
constexpr std::int64_t kPlaces = 5, kWidth = 3;

using Shards = std::array<at::Tensor, kShards>;  // what each has; undefined: nothing

// Passes calls on, and says of its ranks that they share no memory: as GPUs do.
class Apart final : public Communicator {
 public:
  Apart(RankGroup& group, int rank)
      : Communicator(rank, group.world_size(), at::kCPU), calls_(make_shared_memory_communicator(group, rank)) {}

  std::vector<at::Tensor> do_all_gather(const CallRecord&, const at::Tensor& tensor) override {
    return calls_->all_gather(tensor);
  }
  void do_all_reduce(const CallRecord&, at::TensorList, at::TensorList, ReduceOp) override { refuse(); }
  std::uint64_t do_start_all_reduce(const CallRecord&, at::TensorList, at::TensorList, ReduceOp) override { refuse(); }
  void do_wait(std::uint64_t) override { refuse(); }
  bool do_try_wait(std::uint64_t) override { refuse(); }
  void do_forget_started() override { refuse(); }
  void do_reduce(const CallRecord&, at::TensorList, ReduceOp, int) override { refuse(); }
  void do_broadcast(const CallRecord&, at::TensorList, int) override { refuse(); }
  at::Tensor do_reduce_scatter(const CallRecord&, const at::Tensor&, ReduceOp) override { refuse(); }
  std::vector<at::Tensor> do_all_to_all(const CallRecord&, at::TensorList) override { refuse(); }
  void do_barrier(const CallRecord&) override { refuse(); }

 private:
  [[noreturn]] static void refuse() { throw CollectiveError("a call that the test has not expected"); }
  const std::unique_ptr<Communicator> calls_;
};

// Several entries of each place, with numbers whose sum depends on their order.
at::Tensor numbers(int shard, at::IntArrayRef sizes) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(shard + 1));
  return at::randn(sizes, random) * at::pow(10.0, at::randint(-4, 5, {sizes.front(), 1}, random));
}

at::Tensor sparse(int shard) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(shard + 20));
  return at::sparse_coo_tensor(at::randint(0, kPlaces, {1, 14}, random, at::kLong), numbers(shard, {14, kWidth}),
                               {kPlaces, kWidth}, at::dtype(at::kFloat).layout(at::kSparse));
}

std::string bits_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return "nothing";
  if (tensor.is_sparse())
    return (tensor.is_coalesced() ? "coalesced " : "in pieces ") + bits_of(tensor._indices()) +
           bits_of(tensor._values());
  const at::Tensor row = tensor.contiguous();
  return {static_cast<const char*>(row.const_data_ptr()), row.nbytes()};
}

// Of the shards on so many ranks, of which rank r has shard s R + r as its number s.
std::string sum_on(int ranks, const Shards& shards, bool apart) {
  CancelToken token;
  RankGroup group(ranks, token);
  std::vector<std::string> sums(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      const auto communicator = apart && ranks > 1 ? std::unique_ptr<Communicator>(new Apart(group, rank))
                                                   : make_shared_memory_communicator(group, rank);
      std::vector<at::Tensor> mine;
      for (int shard = rank; shard < kShards; shard += ranks) mine.push_back(shards[static_cast<std::size_t>(shard)]);
      const auto sum = tree_sum_over_ranks(*communicator, group, {tree_sum(mine)}, {at::empty({kPlaces, kWidth})},
                                           /*factor=*/1.0 / 3);
      sums[static_cast<std::size_t>(rank)] = bits_of(sum.front());
    });
  for (auto& thread : threads) thread.join();
  for (const std::string& sum : sums)
    if (sum != sums.front()) return "other ones on other ranks";
  return sums.front();
}

void check_same_sums(const Shards& shards) {
  const std::string on_one = sum_on(1, shards, false);
  for (const int ranks : {2, 4, 8})
    for (const bool apart : {false, true}) {
      CAPTURE(ranks, apart);
      CHECK((sum_on(ranks, shards, apart) == on_one));
    }
  CHECK(on_one.find("in pieces") == std::string::npos);
}

}  // namespace

TEST_CASE("the sum over shards of which any may have nothing, or a sparse tensor, is the same bits on any ranks") {
  for (unsigned with : {0x00U, 0x01U, 0x08U, 0x80U, 0x11U, 0x03U, 0x81U, 0x5aU, 0x7fU, 0xffU}) {
    CAPTURE(with);
    Shards shards, dense, mixed;
    for (int shard = 0; shard < kShards; ++shard) {
      if (!(with >> shard & 1)) continue;
      const auto place = static_cast<std::size_t>(shard);
      shards[place] = sparse(shard);
      dense[place] = numbers(shard, {kPlaces, kWidth});
      mixed[place] = shard % 3 == 1 ? dense[place] : shards[place];
    }
    check_same_sums(shards);
    check_same_sums(dense);
    check_same_sums(mixed);
  }
}

TEST_CASE("a sum that is written once for all ranks is the same bits, with the sums of squares of its blocks") {
  const std::int64_t elements = 70'001;
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    CAPTURE(c10::toString(type));
    CancelToken token;
    RankGroup group(4, token);
    const at::Tensor common = at::empty({elements}, type);
    const at::Tensor squares = at::empty({(elements + kReductionBlock - 1) / kReductionBlock}, at::kDouble);
    std::vector<at::Tensor> leaves;
    for (int rank = 0; rank < 4; ++rank) leaves.push_back(numbers(rank, {elements, 1}).view({elements}).to(type));
    std::vector<int> in_common(4);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 4; ++rank)
      threads.emplace_back([&, rank] {
        const auto mine = static_cast<std::size_t>(rank);
        const auto communicator = make_shared_memory_communicator(group, rank);
        const auto sums = tree_sum_over_ranks(
            *communicator, group, {leaves[mine], at::Tensor()}, {at::empty({elements}, type), at::empty({2}, type)},
            0.7, [&](const std::vector<bool>& dense) {
              in_common[mine] += dense == std::vector<bool>{true, false} ? 1 : 0;
              return std::vector<CommonSum>{{common, rank == 2 ? squares : at::Tensor()}, {}};
            });
        in_common[mine] += sums[0].is_same(common) && !sums[1].defined() ? 1 : 0;
      });
    for (auto& thread : threads) thread.join();
    CHECK(in_common == std::vector<int>(4, 2));
    CHECK(at::equal(common, ((leaves[0] + leaves[2]) + (leaves[1] + leaves[3])).mul(0.7)));
    for (std::int64_t block = 0; block < squares.numel(); ++block) {
      const std::int64_t begin = block * kReductionBlock, size = std::min(kReductionBlock, elements - begin);
      const auto element = type == at::kFloat    ? ElementType::float32
                           : type == at::kDouble ? ElementType::float64
                                                 : ElementType::bfloat16;
      const double expected = sum_of_squares(element, common.narrow(0, begin, size).const_data_ptr(), size);
      REQUIRE(squares[block].item<double>() == expected);
    }
  }
}
