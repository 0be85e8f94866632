// Orders of the library's samplers, and batches of samples of different lengths. Their states: sampler_resume_test.cpp.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/CPUGeneratorImpl.h>

#include "support/index_data.h"
#include "tandem/data/padding.h"

using namespace tandem;
using namespace tandem::test;

namespace {

Batch order_of(data::Sampler& sampler, std::int64_t dataset, std::int64_t epoch) {
  const std::int64_t length = sampler.length(dataset);
  const data::EpochOrder order = sampler.begin(length, epoch, false);
  Batch indices;
  for (std::int64_t i = 0; i < length; ++i) indices.push_back(order[i]);
  return indices;
}

at::Generator seeded(std::uint64_t seed) { return at::make_generator<at::CPUGeneratorImpl>(seed); }

// Sample i is i + 1 numbers i, and the label i.
struct Growing : torch::data::datasets::Dataset<Growing> {
  torch::data::Example<> get(std::size_t index) override {
    const auto i = static_cast<std::int64_t>(index);
    return {at::full({i + 1, 2}, static_cast<double>(i)), at::scalar_tensor(i, at::kLong)};
  }
  std::optional<std::size_t> size() const override { return 5; }
};

}  // namespace

TEST_CASE("a weighted sampler draws what Python's draws from a generator of seed and epoch") {
  const std::vector<double> weights{0, 1, 2.5, 0.5, 0, 4};
  for (const bool replacement : {false, true}) {
    data::WeightedRandomSampler sampler(weights, 4, {.replacement = replacement, .seed = 9});
    for (const std::int64_t epoch : {0, 3}) {
      const at::Tensor expected = at::multinomial(at::tensor(weights, at::kDouble), 4, replacement,
                                                  seeded(9 + static_cast<std::uint64_t>(epoch)));
      CHECK(order_of(sampler, 6, epoch) == list(expected));
    }
  }
  // Each sample comes about as often as its weight says.
  data::WeightedRandomSampler sampler(weights, 80'000);
  std::vector<int> counts(6);
  for (const std::int64_t index : order_of(sampler, 6, 0)) counts[static_cast<std::size_t>(index)] += 1;
  for (std::size_t i = 0; i < 6; ++i) CHECK(std::abs(counts[i] - weights[i] * 10'000) <= 600);
  CHECK(counts[0] + counts[4] == 0);
}

TEST_CASE("a subset sampler gives its indices in Python's order of seed and epoch") {
  const std::vector<std::int64_t> indices{7, 2, 9, 4};
  data::SubsetRandomSampler sampler(indices, 5);
  for (const std::int64_t epoch : {0, 2}) {
    const Batch places = list(at::randperm(4, seeded(5 + static_cast<std::uint64_t>(epoch)), at::kLong));
    Batch expected;
    for (const std::int64_t place : places) expected.push_back(indices[static_cast<std::size_t>(place)]);
    CHECK(order_of(sampler, 10, epoch) == expected);
  }
  const auto epochs = epochs_on_ranks(
      2, data::DataLoader(Indices(10),
                          {.batch_size = 1, .sampler = std::make_shared<data::SubsetRandomSampler>(indices)}));
  Batch seen;
  for (const auto& rank : epochs)
    for (const Batch& batch : rank[0]) seen.insert(seen.end(), batch.begin(), batch.end());
  std::sort(seen.begin(), seen.end());
  CHECK(seen == Batch{2, 4, 7, 9});
}

TEST_CASE("a sampler by length gives all samples, sorted within groups, the longest first of all") {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < 103; ++i) lengths.push_back(i * 37 % 101 + 1);
  data::LengthGroupedSampler sampler(lengths, 20, 1);
  const auto length_of = [&](std::int64_t index) { return lengths[static_cast<std::size_t>(index)]; };
  const Batch order = order_of(sampler, 103, 0);
  Batch sorted = order;
  std::sort(sorted.begin(), sorted.end());
  Batch all(103);
  std::iota(all.begin(), all.end(), 0);
  CHECK(sorted == all);
  CHECK(length_of(order[0]) == *std::max_element(lengths.begin(), lengths.end()));
  int groups_in_order = 0;
  std::int64_t filled = 0, bare = 0;
  for (std::size_t begin = 0; begin < 103; begin += 20) {
    const std::size_t end = std::min<std::size_t>(begin + 20, 103);
    groups_in_order += std::is_sorted(order.begin() + static_cast<std::ptrdiff_t>(begin),
                                      order.begin() + static_cast<std::ptrdiff_t>(end),
                                      [&](auto a, auto b) { return length_of(a) > length_of(b); });
  }
  CHECK(groups_in_order >= 5);  // the first of one group is another group's, as longest
  const auto padded = [&](const Batch& indices) {
    std::int64_t sum = 0;
    for (std::size_t begin = 0; begin < 100; begin += 4) {
      std::int64_t longest = 0;
      for (std::size_t i = begin; i < begin + 4; ++i) longest = std::max(longest, length_of(indices[i]));
      sum += 4 * longest;
    }
    return sum;
  };
  filled = padded(order), bare = padded(list(at::randperm(103, seeded(1), at::kLong)));
  CHECK(filled < bare * 3 / 4);
  CHECK(order_of(sampler, 103, 1) != order);
  CHECK(order_of(sampler, 103, 0) == order);
}

TEST_CASE("samplers that cannot be, or do not go with the dataset, are errors that say why") {
  using data::LengthGroupedSampler;
  using data::SubsetRandomSampler;
  using data::WeightedRandomSampler;
  CHECK_THROWS_WITH(WeightedRandomSampler({1, -2}, 1), ContainsSubstring("weight 1 of a WeightedRandomSampler is -2"));
  CHECK_THROWS_WITH(WeightedRandomSampler({std::nan("")}, 1), ContainsSubstring("weight 0"));
  CHECK_THROWS_WITH(WeightedRandomSampler({0, 0}, 1), ContainsSubstring("2 weights, 0 of them above 0"));
  CHECK_THROWS_WITH(WeightedRandomSampler({}, 1), ContainsSubstring("0 weights"));
  CHECK_THROWS_WITH(WeightedRandomSampler({1}, 0), ContainsSubstring("draw 0 samples; use 1"));
  CHECK_THROWS_WITH(WeightedRandomSampler({1, 0, 1}, 3, {.replacement = false}),
                    ContainsSubstring("only 2 have a weight"));
  CHECK_THROWS_WITH(WeightedRandomSampler({1, 1}, 1).length(3),
                    ContainsSubstring("2 weights, and the dataset 3 samples"));
  CHECK_THROWS_WITH(SubsetRandomSampler(std::vector<std::int64_t>{}), ContainsSubstring("no indices"));
  CHECK_THROWS_WITH(SubsetRandomSampler({0, 5}).length(5), ContainsSubstring("index 5, and the dataset 5 samples"));
  CHECK_THROWS_WITH(SubsetRandomSampler({-1}).length(5), ContainsSubstring("index -1"));
  CHECK_THROWS_WITH(LengthGroupedSampler({}, 2), ContainsSubstring("no lengths"));
  CHECK_THROWS_WITH(LengthGroupedSampler({1}, 0), ContainsSubstring("group of a LengthGroupedSampler is 0"));
  CHECK_THROWS_WITH(LengthGroupedSampler({1, 2}, 2).length(3), ContainsSubstring("2 lengths, and the dataset 3"));
}

TEST_CASE("samples of different lengths are filled up to a batch that says how long they were") {
  const auto batches =
      on_ranks<std::vector<data::PaddedBatch<torch::data::Example<>>>>(2, [](Accelerator& accelerator) {
        auto loader =
            accelerator.prepare(data::DataLoader(Growing(), {.batch_size = 2}).with_collate(data::PadCollate{{-1}}));
        std::vector<data::PaddedBatch<torch::data::Example<>>> all;
        for (auto& batch : loader) all.push_back(batch);
        return all;
      })[1];
  REQUIRE(batches.size() == 2);
  CHECK(list(batches[0].lengths) == Batch{3, 4});
  CHECK(batches[0].samples.data.sizes() == std::vector<std::int64_t>{2, 4, 2});
  const auto mine = data::PadCollate{{-1, 7}}(std::vector{Growing().get(1), Growing().get(3)});
  CHECK(mine.samples.data.sizes() == std::vector<std::int64_t>{2, 4, 2});
  CHECK(at::equal(mine.samples.data[0].select(1, 0), at::tensor({1.0F, 1.0F, -1.0F, -1.0F})));
  CHECK(at::equal(mine.samples.target, at::tensor({1, 3}, at::kLong)));
  CHECK(list(mine.lengths) == Batch{2, 4});
  const auto pair = data::PadCollate{{0, -100}}(
      std::vector{std::pair{at::ones({1}), at::ones({1})}, std::pair{at::ones({2}), at::ones({3})}});
  CHECK(at::equal(pair.samples.first, at::tensor({1.0F, 0.0F, 1.0F, 1.0F}).view({2, 2})));
  CHECK(at::equal(pair.samples.second[0], at::tensor({1.0F, -100.0F, -100.0F})));
  CHECK_THROWS_WITH(data::PadCollate{}(std::vector{at::ones({2, 3}), at::ones({2, 4})}),
                    ContainsSubstring("differ in dim 0 only"));
  CHECK_THROWS_WITH(data::PadCollate{}(std::vector{at::ones({})}), ContainsSubstring("has a length"));
  CHECK_THROWS_AS(data::PadCollate{{}}(std::vector{at::ones({1})}), ConfigError);
}
