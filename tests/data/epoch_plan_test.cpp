#include "tandem/data/epoch_plan.h"

#include <algorithm>
#include <map>
#include <random>

#include "support/catch.h"
#include "tandem/core/error.h"

using namespace tandem;
using data::EpochPlan;
using data::EpochPlanOptions;

namespace {

using Batch = std::vector<std::int64_t>;
using Steps = std::vector<Batch>;

std::vector<Steps> plan_of(const EpochPlanOptions& options) {
  const EpochPlan plan(options);
  std::vector<Steps> ranks;
  for (int rank = 0; rank < options.ranks; ++rank) {
    ranks.emplace_back();
    for (std::int64_t step = 0; step < plan.steps(rank); ++step) ranks.back().push_back(plan.positions(step, rank));
  }
  return ranks;
}

// Semantics §2 and §3, written as they stand there.
std::vector<Steps> naive_plan(const EpochPlanOptions& o) {
  const std::int64_t G = o.split_batches ? o.batch_size : o.batch_size * o.ranks, p = G / o.ranks, N = o.length;
  std::vector<Steps> ranks(static_cast<std::size_t>(o.ranks));
  const auto give = [&](int rank, const Batch& from, std::int64_t begin, std::int64_t size) {
    const auto first = std::min<std::int64_t>(begin, static_cast<std::int64_t>(from.size()));
    const auto last = std::min<std::int64_t>(begin + size, static_cast<std::int64_t>(from.size()));
    if (first < last) ranks[static_cast<std::size_t>(rank)].emplace_back(from.begin() + first, from.begin() + last);
  };
  Batch first_samples;
  for (std::int64_t i = 0; i < std::min(o.dispatch ? std::int64_t{o.ranks} : G, N); ++i) first_samples.push_back(i);
  for (std::int64_t begin = 0; begin < N; begin += G) {
    Batch group;
    for (std::int64_t i = begin; i < std::min(begin + G, N); ++i) group.push_back(i);
    const auto n = static_cast<std::int64_t>(group.size());
    if (n < G && o.drop_last) break;
    std::int64_t each = o.dispatch ? n / o.ranks : p;
    if (o.dispatch && n % o.ranks != 0) each += 1;
    const bool pad = o.dispatch || (o.even_batches && o.ranks > 1);
    for (std::size_t i = 0; pad && static_cast<std::int64_t>(group.size()) < each * o.ranks; ++i)
      group.push_back(first_samples[i % first_samples.size()]);
    for (int rank = 0; rank < o.ranks; ++rank) give(rank, group, rank * each, each);
  }
  return ranks;
}

}  // namespace

TEST_CASE("the worked examples of the semantics in dataset order") {
  struct Example {
    EpochPlanOptions options;
    std::vector<Steps> ranks;
    std::int64_t remainder;
  };
  const std::vector<Example> examples{
      {{.length = 13, .batch_size = 4, .ranks = 2}, {{{0, 1, 2, 3}, {8, 9, 10, 11}}, {{4, 5, 6, 7}, {12, 0, 1, 2}}}, 5},
      {{.length = 13, .batch_size = 4, .ranks = 2, .drop_last = true}, {{{0, 1, 2, 3}}, {{4, 5, 6, 7}}}, -1},
      {{.length = 13, .batch_size = 4, .ranks = 2, .even_batches = false},
       {{{0, 1, 2, 3}, {8, 9, 10, 11}}, {{4, 5, 6, 7}, {12}}},
       5},
      {{.length = 10, .batch_size = 4, .ranks = 2, .split_batches = true},
       {{{0, 1}, {4, 5}, {8, 9}}, {{2, 3}, {6, 7}, {0, 1}}},
       2},
      {{.length = 3, .batch_size = 4, .ranks = 3}, {{{0, 1, 2, 0}}, {{1, 2, 0, 1}}, {{2, 0, 1, 2}}}, 3},
      {{.length = 5, .batch_size = 2, .ranks = 4}, {{{0, 1}}, {{2, 3}}, {{4, 0}}, {{1, 2}}}, 5},
      {{.length = 13, .batch_size = 4, .ranks = 2, .dispatch = true},
       {{{0, 1, 2, 3}, {8, 9, 10}}, {{4, 5, 6, 7}, {11, 12, 0}}},
       5},
      {{.length = 14, .batch_size = 4, .ranks = 2, .dispatch = true},
       {{{0, 1, 2, 3}, {8, 9, 10}}, {{4, 5, 6, 7}, {11, 12, 13}}},
       6},
      {{.length = 10, .batch_size = 4, .ranks = 2, .split_batches = true, .dispatch = true},
       {{{0, 1}, {4, 5}, {8}}, {{2, 3}, {6, 7}, {9}}},
       2}};
  for (std::size_t i = 0; i < examples.size(); ++i) {
    INFO("example " << i + 1);
    CHECK(plan_of(examples[i].options) == examples[i].ranks);
    CHECK(EpochPlan(examples[i].options).remainder() == examples[i].remainder);
  }
  CHECK(EpochPlan(examples[2].options).len(0) == 2);
  CHECK(EpochPlan(examples[2].options).len(1) == 2);
}

TEST_CASE("the plan is the definition, for random options") {
  std::mt19937 random(11);
  for (int trial = 0; trial < 5000; ++trial) {
    EpochPlanOptions o;
    o.ranks = 1 + static_cast<int>(random() % 5);
    o.batch_size = 1 + random() % 6;
    o.length = random() % 70;
    o.drop_last = random() % 2;
    o.even_batches = random() % 2;
    o.dispatch = random() % 2;
    o.split_batches = random() % 2;
    if (o.split_batches) o.batch_size *= o.ranks;
    CAPTURE(o.length, o.batch_size, o.ranks, o.drop_last, o.even_batches, o.split_batches, o.dispatch);
    REQUIRE(plan_of(o) == naive_plan(o));
  }
}

TEST_CASE("len follows Accelerate's count") {
  std::mt19937 random(12);
  for (int trial = 0; trial < 2000; ++trial) {
    EpochPlanOptions o;
    o.ranks = 1 + static_cast<int>(random() % 5);
    o.batch_size = 1 + random() % 6;
    o.length = random() % 70;
    o.drop_last = random() % 2;
    o.even_batches = random() % 2;
    o.dispatch = random() % 2;
    o.split_batches = random() % 2;
    if (o.split_batches) o.batch_size *= o.ranks;
    const std::int64_t nb = o.drop_last ? o.length / o.batch_size : (o.length + o.batch_size - 1) / o.batch_size;
    const std::int64_t R = o.ranks;
    for (int r = 0; r < o.ranks; ++r) {
      std::int64_t expected;
      if (o.dispatch)
        expected = o.split_batches ? nb : o.drop_last ? nb / R : (nb + R - 1) / R;
      else if (R == 1 || o.split_batches)
        expected = nb;
      else if (nb % R == 0 || o.drop_last)
        expected = nb / R;
      else
        expected = o.even_batches ? nb / R + 1 : nb / R + (r < nb % R);
      CAPTURE(o.length, o.batch_size, o.ranks, o.drop_last, o.even_batches, o.split_batches, o.dispatch, r);
      REQUIRE(EpochPlan(o).len(r) == expected);
    }
  }
}

TEST_CASE("every sample comes exactly once, apart from what is repeated or left out") {
  std::mt19937 random(13);
  for (int trial = 0; trial < 2000; ++trial) {
    EpochPlanOptions o{.length = static_cast<std::int64_t>(random() % 90),
                       .batch_size = static_cast<std::int64_t>(1 + random() % 5),
                       .ranks = static_cast<int>(1 + random() % 5),
                       .even_batches = random() % 2 == 0,
                       .dispatch = random() % 2 == 0};
    std::map<std::int64_t, int> seen;
    for (const auto& rank : plan_of(o))
      for (const auto& batch : rank)
        for (auto position : batch) seen[position] += 1;
    REQUIRE(static_cast<std::int64_t>(seen.size()) == o.length);
    if (!o.even_batches && !o.dispatch)
      REQUIRE(std::all_of(seen.begin(), seen.end(), [](const auto& entry) { return entry.second == 1; }));
  }
}

TEST_CASE("any step of a huge epoch can be asked for") {
  const EpochPlan plan({.length = 1'000'000'000'000, .batch_size = 64, .ranks = 8});
  const auto positions = plan.positions(1'000'000'000, 7);
  CHECK(positions.front() == 1'000'000'000ll * 512 + 7 * 64);
  CHECK(positions.size() == 64);
}

TEST_CASE("options that do not go together say what would be right") {
  CHECK_THROWS_WITH(EpochPlan({.length = 9, .batch_size = 7, .ranks = 2, .split_batches = true}),
                    "batch_size 7 does not divide by 2 ranks with split_batches; use 6 or 8");
  CHECK_THROWS_AS(EpochPlan({.length = 9, .batch_size = 0}), ConfigError);
}
