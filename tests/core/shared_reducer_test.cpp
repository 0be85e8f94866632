// The part of the collectives that needs no LibTorch, so that ThreadSanitizer sees it.
#include "comm/shared_reducer.h"

#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "support/catch.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::comm;

namespace {

constexpr const char* kOperation = "all_reduce";

void run_ranks(int ranks, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back([&, rank] { body(rank); });
  for (auto& thread : threads) thread.join();
}

float value_of(int rank, int call, std::int64_t at) { return static_cast<float>((rank + 1) * (call % 7) + at % 13); }

// Makes `calls` all-reduces of random lengths, the same on every rank, with delays that are not, and counts what is
// wrong in the sums.
int wrong_sums(RankGroup& group, int rank, int calls) {
  SharedReducer reducer(group, rank);
  std::mt19937 lengths(11), delays(static_cast<unsigned>(rank));
  int wrong = 0;
  for (int call = 0; call < calls; ++call) {
    const std::int64_t length = lengths() % (lengths() % 4 == 0 ? 20'000 : 200);
    std::vector<float> values;
    for (std::int64_t i = 0; i < length; ++i) values.push_back(value_of(rank, call, i));
    if (delays() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(delays() % 200));
    const ElementRow part{values.data(), length, ElementType::float32};
    const CallRecord record{.operation = kOperation, .elements = length};
    reducer.reduce(record, {&part, 1}, {&part, 1}, ReduceOp::sum);
    for (std::int64_t i = 0; i < length; ++i) {
      float sum = 0;
      for (int peer = 0; peer < group.world_size(); ++peer) sum += value_of(peer, call, i);
      wrong += values[static_cast<std::size_t>(i)] != sum;
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE("sums of any length are right whatever the timing, with more ranks than cores too") {
  const int ranks = GENERATE(1, 2, 3, 8);
  CancelToken token;
  RankGroup group(ranks, token);
  std::vector<int> wrong(static_cast<std::size_t>(ranks));
  run_ranks(ranks, [&](int rank) { wrong[static_cast<std::size_t>(rank)] = wrong_sums(group, rank, 300); });
  CHECK(wrong == std::vector<int>(static_cast<std::size_t>(ranks), 0));
}

TEST_CASE("a cancel at any moment ends all ranks, whatever they wait for") {
  std::mt19937 random(5);
  for (int trial = 0; trial < 100; ++trial) {
    CancelToken token;
    RankGroup group(3, token);
    std::atomic<int> ended{0};
    std::thread canceller([&, delay = random() % 500] {
      std::this_thread::sleep_for(std::chrono::microseconds(delay));
      token.cancel(nullptr);
    });
    run_ranks(3, [&](int rank) {
      try {
        wrong_sums(group, rank, 1'000'000);
      } catch (const Cancelled&) {
        ended += 1;
      }
    });
    canceller.join();
    REQUIRE(ended == 3);
  }
}

TEST_CASE("calls that differ end all ranks with the difference, whoever comes first") {
  std::mt19937 random(7);
  for (int trial = 0; trial < 50; ++trial) {
    CancelToken token;
    RankGroup group(2, token);
    std::atomic<int> told{0};
    run_ranks(2, [&, odd = static_cast<int>(random() % 2)](int rank) {
      try {
        std::this_thread::sleep_for(std::chrono::microseconds(rank * (trial % 5) * 50));
        group.meet(rank, {.operation = rank == odd ? "barrier" : "check_trigger"});
      } catch (const CollectiveError& error) {
        token.cancel(std::current_exception(), rank);
        told += 1;
      } catch (const Cancelled& error) {
        told += std::string(error.what()).find("different collective calls") != std::string::npos;
      }
    });
    REQUIRE(told == 2);
  }
}

TEST_CASE("bfloat16 and float16 are summed in float32 and rounded once, to nearest even") {
  const auto sum = [](ElementType type, std::vector<std::uint16_t> values) {
    std::vector<const void*> inputs;
    for (const auto& value : values) inputs.push_back(&value);
    std::uint16_t result = 0;
    void* const output[] = {&result};
    reduce_elements(type, ReduceOp::sum, inputs, output, 0, 1);
    return result;
  };
  // bfloat16: 1 + 2^-8 lies between 1 and 1 + 2^-7, and goes to the even one; twice 2^-8 reaches it.
  CHECK(sum(ElementType::bfloat16, {0x3f80, 0x3b80}) == 0x3f80);
  CHECK(sum(ElementType::bfloat16, {0x3f80, 0x3b80, 0x3b80}) == 0x3f81);
  CHECK(sum(ElementType::bfloat16, {0x3f81, 0x3b80}) == 0x3f82);
  CHECK(sum(ElementType::bfloat16, {0x7f7f, 0x7f7f}) == 0x7f80);  // too large: infinity
  CHECK(sum(ElementType::bfloat16, {0x7f80, 0xff80}) == 0x7fc0);  // infinity - infinity: NaN
  // float16: the same around 1 with 2^-11 and 2^-10.
  CHECK(sum(ElementType::float16, {0x3c00, 0x1000}) == 0x3c00);
  CHECK(sum(ElementType::float16, {0x3c00, 0x1000, 0x1000}) == 0x3c01);
  CHECK(sum(ElementType::float16, {0x7bff, 0x7bff}) == 0x7c00);
}

TEST_CASE("sums of squares of blocks come with a reduction, the same bits as of the result, on any number of ranks") {
  const int ranks = GENERATE(1, 2, 3, 5);
  const std::vector<std::int64_t> lengths = {1, 1023, 3000, 0, 1024, 9000};
  // A memory for all results and squares, as ranks may have.
  std::vector<std::vector<float>> results;
  std::vector<std::vector<double>> squares;
  for (const std::int64_t length : lengths) {
    results.emplace_back(length);
    squares.emplace_back((length + kReductionBlock - 1) / kReductionBlock, -1.0);
  }
  CancelToken token;
  RankGroup group(ranks, token);
  run_ranks(ranks, [&](int rank) {
    SharedReducer reducer(group, rank);
    std::vector<std::vector<float>> values;
    std::vector<ElementRow> inputs, outputs;
    std::vector<double*> wanted;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      auto& mine = values.emplace_back();
      for (std::int64_t at = 0; at < lengths[i]; ++at) mine.push_back(0.3F * value_of(rank, static_cast<int>(i), at));
      inputs.push_back({mine.data(), lengths[i], ElementType::float32});
      outputs.push_back({results[i].data(), lengths[i], ElementType::float32});
      wanted.push_back(squares[i].data());
    }
    reducer.wait(reducer.start({.operation = kOperation}, {inputs, outputs, ReduceOp::mean, wanted}));
  });
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    for (std::int64_t at = 0; at < lengths[i]; ++at) {
      float sum = 0;
      for (int rank = 0; rank < ranks; ++rank) sum += 0.3F * value_of(rank, static_cast<int>(i), at);
      REQUIRE(results[i][static_cast<std::size_t>(at)] == sum / static_cast<float>(ranks));
    }
    for (std::size_t block = 0; block < squares[i].size(); ++block) {
      const auto begin = static_cast<std::int64_t>(block) * kReductionBlock;
      const std::int64_t n = std::min(kReductionBlock, lengths[i] - begin);
      double expected = 0;
      for (std::int64_t at = begin; at < begin + n; ++at)
        expected += std::pow(static_cast<double>(results[i][static_cast<std::size_t>(at)]), 2);
      CHECK(squares[i][block] == sum_of_squares(ElementType::float32, results[i].data() + begin, n));
      CHECK(std::abs(squares[i][block] - expected) <= 1e-6 * expected);
    }
  }
}
