// The collectives of GPU ranks on a fake device: NCCL's, with a fake NCCL, and those through peers' memory, against the
// CPU's.
#include <functional>
#include <memory>
#include <random>
#include <thread>

#include <c10/core/StreamGuard.h>
#include <torch/types.h>

#include "comm/nccl/communicator.h"
#include "comm/peer_memory.h"
#include "comm/shared_memory_communicator.h"
#include "support/catch.h"
#include "support/fake_device.h"
#include "support/fake_module.h"
#include "support/random_tensors.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::comm;
using namespace tandem::test;
using Catch::Matchers::ContainsSubstring;

namespace {

enum class Kind { cpu, nccl, peer, peer_on_one_device };

// The ranks of a launch on threads, each with a communicator.
class Ranks {
 public:
  Ranks(Kind its_kind, int ranks) : kind(its_kind), group(ranks, token), marks(ranks, c10::kCUDA) {
    fake::reset();
    std::vector<std::string> names;
    for (int rank = 0; rank < ranks; ++rank) names.push_back(device_of(rank).str());
    team = std::make_shared<nccl::Team>(nccl, group, names, nccl::Limits{});
  }

  c10::Device device_of(int rank) const {
    return kind == Kind::cpu ? c10::Device(at::kCPU) : fake::device(kind == Kind::peer_on_one_device ? 5 : rank);
  }

  // Runs `body` with each rank's communicator; returns what went wrong.
  std::string run(const std::function<void(Communicator&, int rank, c10::Device)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < group.world_size(); ++rank)
      threads.emplace_back([&, rank] {
        try {
          run_rank(rank, body);
          group.depart(rank);
        } catch (...) {
          token.cancel(std::current_exception(), rank);
        }
      });
    for (auto& thread : threads) thread.join();
    end = token.cancelled() ? team->abort() : team->finish();
    try {
      if (token.reason()) std::rethrow_exception(token.reason());
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }

  const Kind kind;
  CancelToken token;
  RankGroup group;
  PeerMarks marks;
  FakeModule module;
  const std::shared_ptr<FakeNccl> nccl = module.fake_nccl;
  std::shared_ptr<nccl::Team> team;
  LaunchEnd end;

 private:
  void run_rank(int rank, const std::function<void(Communicator&, int rank, c10::Device)>& body) {
    const c10::Device device = device_of(rank);
    if (kind == Kind::cpu) return body(*make_shared_memory_communicator(group, rank), rank, device);
    const c10::DeviceGuard on_device(device);
    const c10::StreamGuard on_stream(c10::impl::VirtualGuardImpl(device.type()).getNewStream(device));
    const auto communicator = kind == Kind::nccl ? nccl::make_communicator(team, module, group, rank, device)
                                                 : make_peer_memory_communicator(module, marks, group, rank, device);
    body(*communicator, rank, device);
  }
};

using Results = std::vector<std::vector<at::Tensor>>;  // by rank

// Every collective with random tensors of every type, on each rank; results as CPU tensors.
std::vector<at::Tensor> call_everything(Communicator& communicator, int rank, c10::Device device, unsigned seed) {
  std::vector<at::Tensor> results;
  const auto keep = [&](const at::Tensor& tensor) {
    results.push_back(tensor.to(at::kCPU, tensor.scalar_type(), false, /*copy=*/true));
  };
  std::mt19937 random(seed);
  const int ranks = communicator.world_size();
  for (const auto type : kTypes) {
    // Keeps strides: to(device) would.
    const auto next = [&] { return random_tensor(random, type, rank).to(device); };
    for (const auto op : {ReduceOp::sum, ReduceOp::mean, ReduceOp::max, ReduceOp::min, ReduceOp::product}) {
      if (!defined_for(op, type)) continue;
      std::vector<at::Tensor> tensors{next(), next(), next()}, outputs;
      for (const auto& tensor : tensors) outputs.push_back(at::zeros_like(tensor));
      communicator.all_reduce(tensors, outputs, op);
      for (const auto& output : outputs) keep(output);
      for (const auto& tensor : tensors) keep(tensor);
      communicator.all_reduce(tensors, op);
      for (const auto& tensor : tensors) keep(tensor);
      const int root = static_cast<int>(random() % static_cast<unsigned>(ranks));
      std::vector<at::Tensor> to_one{next(), next()};
      communicator.reduce(to_one, op, root);
      for (const auto& tensor : to_one) keep(tensor);
      const at::Tensor rows = at::stack(std::vector<at::Tensor>(static_cast<std::size_t>(2 * ranks), next()));
      keep(communicator.reduce_scatter(rows, op));
    }
    std::vector<at::Tensor> sent{next(), next()};
    communicator.broadcast(sent, static_cast<int>(random() % static_cast<unsigned>(ranks)));
    for (const auto& tensor : sent) keep(tensor);
    const at::Tensor mine = at::full({rank + 1, 2}, rank, at::kInt).to(type).to(device);
    for (const auto& tensor : communicator.all_gather(mine)) keep(tensor);
    std::vector<at::Tensor> for_all;
    for (int peer = 0; peer < ranks; ++peer) for_all.push_back(mine.narrow(0, 0, 1).expand({peer, 2}));
    for (const auto& tensor : communicator.all_to_all(for_all)) keep(tensor);
    communicator.barrier();
  }
  return results;
}

// Started reductions of several sizes with computing between them, waited for in several ways.
std::vector<at::Tensor> start_and_wait(Communicator& communicator, int rank, c10::Device device, unsigned seed) {
  std::vector<at::Tensor> results;
  std::mt19937 same(seed), mine(seed * 100 + static_cast<unsigned>(rank));
  for (int round = 0; round < 5; ++round) {
    std::vector<at::Tensor> buckets;
    std::vector<std::uint64_t> numbers;
    for (int bucket = 0; bucket < 6; ++bucket) {
      const auto length = static_cast<std::int64_t>(same() % 5000);
      const auto op = same() % 2 ? ReduceOp::mean : ReduceOp::sum;
      buckets.push_back(at::arange(length, at::dtype(at::kFloat).device(device)).mul_(rank + 1).add_(bucket));
      numbers.push_back(communicator.start_all_reduce(buckets.back(), buckets.back(), op));
      at::randn({16, 16}).to(device).matmul(at::ones({16, 16}, device));
      if (mine() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(mine() % 300));
      if (mine() % 3 == 0 && communicator.try_wait(numbers.back())) buckets.back().add_(0);
    }
    for (const auto number : numbers)
      if (mine() % 2) communicator.wait(number);
    communicator.wait(numbers.back());
    for (const auto& bucket : buckets) results.push_back(bucket.mul(2).to(at::kCPU));
    results.push_back(communicator.all_gather(buckets.front())[0].to(at::kCPU));
  }
  return results;
}

using Script = std::vector<at::Tensor> (*)(Communicator&, int rank, c10::Device, unsigned seed);

Results results_of(Ranks& ranks, Script script, unsigned seed) {
  Results results(static_cast<std::size_t>(ranks.group.world_size()));
  const std::string error = ranks.run([&](Communicator& communicator, int rank, c10::Device device) {
    results[static_cast<std::size_t>(rank)] = script(communicator, rank, device, seed);
  });
  INFO(error);
  REQUIRE(error.empty());
  REQUIRE(ranks.end.problem.empty());
  return results;
}

void check_like_cpu(Kind kind, int ranks, Script script, unsigned seed) {
  Ranks cpu(Kind::cpu, ranks), device(kind, ranks);
  const Results expected = results_of(cpu, script, seed), results = results_of(device, script, seed);
  for (std::size_t rank = 0; rank < results.size(); ++rank) {
    REQUIRE(results[rank].size() == expected[rank].size());
    for (std::size_t i = 0; i < results[rank].size(); ++i) {
      CAPTURE(rank, i, results[rank][i].scalar_type(), results[rank][i].sizes());
      REQUIRE(results[rank][i].sizes() == expected[rank][i].sizes());
      REQUIRE(at::equal(results[rank][i], expected[rank][i]));
    }
  }
  CHECK(fake::races() == std::vector<std::string>{});
  CHECK(device.nccl->violations() == std::vector<std::string>{});
  CHECK(device.nccl->alive() == 0);
}

}  // namespace

TEST_CASE("every collective on devices gives what it gives on the CPU, and orders its streams") {
  const Kind kind = GENERATE(Kind::nccl, Kind::peer, Kind::peer_on_one_device);
  const int ranks = GENERATE(1, 2, 3, 4);
  CAPTURE(static_cast<int>(kind), ranks);
  check_like_cpu(kind, ranks, &call_everything, static_cast<unsigned>(ranks));
}

TEST_CASE("reductions that are started on devices overlap with computing, and order their streams") {
  const Kind kind = GENERATE(Kind::nccl, Kind::peer, Kind::peer_on_one_device);
  const int ranks = GENERATE(1, 2, 3, 4);
  for (unsigned seed = 0; seed < 5; ++seed) {
    CAPTURE(static_cast<int>(kind), ranks, seed);
    check_like_cpu(kind, ranks, &start_and_wait, seed);
  }
}

TEST_CASE("a NaN on any rank reaches max and min on devices") {
  const Kind kind = GENERATE(Kind::nccl, Kind::peer);
  Ranks ranks(kind, 2);
  std::atomic<int> nans{0};
  CHECK(ranks.run([&](Communicator& communicator, int rank, c10::Device device) {
    for (const auto op : {ReduceOp::max, ReduceOp::min}) {
      at::Tensor value = at::full({}, rank == 0 ? NAN : 1.0, at::dtype(at::kFloat).device(device));
      communicator.all_reduce({value}, op);
      nans += value.isnan().item<bool>();
    }
  }) == "");
  CHECK(nans == 4);
}

TEST_CASE("ranks whose calls or reductions differ get an error, and nobody hangs") {
  const Kind kind = GENERATE(Kind::nccl, Kind::peer);
  struct Case {
    std::function<void(Communicator&, int, at::Tensor&)> body;
    std::string words;
  };
  const std::vector<Case> cases{
      {[](Communicator& c, int rank, at::Tensor& value) {
         rank == 0 ? c.all_reduce({value}, ReduceOp::sum) : c.broadcast({value}, 0);
       },
       "different collective calls"},
      {[](Communicator& c, int rank, at::Tensor& value) {
         c.wait(c.start_all_reduce({value}, {value}, rank == 0 ? ReduceOp::sum : ReduceOp::mean));
       },
       "ranks reduce different gradients"},
      {[](Communicator& c, int rank, at::Tensor& value) {
         if (rank == 0) c.wait(c.start_all_reduce({value}, {value}, ReduceOp::sum));
       },
       "returned from its body"},
      {[](Communicator& c, int rank, at::Tensor& value) {
         if (rank == 0) throw Error("of the test");
         c.wait(c.start_all_reduce({value}, {value}, ReduceOp::sum));
       },
       "of the test"}};
  for (const Case& c : cases) {
    Ranks ranks(kind, 2);
    const std::string error = ranks.run([&](Communicator& communicator, int rank, c10::Device device) {
      at::Tensor value = at::ones({3}, device);
      c.body(communicator, rank, value);
    });
    CHECK_THAT(error, ContainsSubstring(c.words));
    CHECK(ranks.end.problem.empty());
    CHECK(ranks.nccl->alive() == 0);
  }
}

TEST_CASE("with NCCL all ranks make a call after the same started reductions") {
  Ranks ranks(Kind::nccl, 2);
  const std::string error = ranks.run([&](Communicator& communicator, int rank, c10::Device device) {
    at::Tensor value = at::ones({3}, device), other = at::ones({3}, device);
    if (rank == 1) communicator.start_all_reduce({value}, {value}, ReduceOp::sum);
    communicator.broadcast({other}, 0);
  });
  CHECK_THAT(error, ContainsSubstring("rank 1 has started 1 reductions") && ContainsSubstring("rank 0 only 0") &&
                        ContainsSubstring("broadcast"));
}

TEST_CASE("ranks that forget what they have started, not all the same, go on") {
  const Kind kind = GENERATE(Kind::nccl, Kind::peer, Kind::peer_on_one_device);
  const int started = GENERATE(0, 1, 2);
  Ranks ranks(kind, 3);
  std::atomic<int> right{0};
  const std::string error = ranks.run([&](Communicator& communicator, int rank, c10::Device device) {
    for (int round = 0; round < 3; ++round) {
      {
        at::Tensor value = at::ones({3000}, device);
        for (int i = 0; i < (rank == 1 ? 2 : started); ++i)
          communicator.start_all_reduce({value}, {value}, ReduceOp::sum);
        communicator.barrier();
        communicator.forget_started();
        communicator.barrier();
      }
      at::Tensor value = at::full({2000}, rank, at::dtype(at::kFloat).device(device));
      communicator.wait(communicator.start_all_reduce({value}, {value}, ReduceOp::sum));
      communicator.all_reduce({value}, ReduceOp::mean);
      right += value.sum().item<double>() == 6000;
    }
  });
  CAPTURE(static_cast<int>(kind), started, error);
  CHECK(right == 9);
  CHECK(ranks.nccl->alive() == 0);
  CHECK(ranks.nccl->violations() == std::vector<std::string>{});
  CHECK(fake::races() == std::vector<std::string>{});
}

TEST_CASE("an error of NCCL's in a collective names rank, device and call") {
  for (const std::string function :
       {"broadcast", "all_gather", "all_reduce", "reduce", "reduce_scatter", "send", "group_end"}) {
    Ranks ranks(Kind::nccl, 2);
    ranks.nccl->fail(function, function == "group_end" ? -1 : 1, static_cast<nccl::Result>(1));
    const std::string error = ranks.run([](Communicator&, int, c10::Device) {});  // the warm-up calls all
    CHECK_THAT(error, ContainsSubstring(function == "group_end" ? "rank " : "rank 1 (cuda:1): nccl") &&
                          ContainsSubstring("fake error 1"));
    CHECK(ranks.end.problem.empty());
    CHECK(ranks.nccl->alive() == 0);
  }
}
