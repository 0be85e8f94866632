#include "tandem/data/tensor_dataset.h"

#include <map>
#include <string>
#include <tuple>

#include <torch/data/example.h>
#include <torch/types.h>

#include "support/catch.h"
#include "tandem/core/error.h"

using namespace tandem;
using data::TensorDataset;

namespace {

const std::vector<std::size_t> kRows{3, 0, 3, 4};

at::Tensor kept_rows(const at::Tensor& tensor) { return at::stack({tensor[3], tensor[0], tensor[3], tensor[4]}); }

struct Sample {
  at::Tensor image, box;
  std::string name;
};
auto batch_fields(Sample& s) { return std::tie(s.image, s.box, s.name); }

}  // namespace

TEST_CASE("a batch has the form in which the tensors of a dataset were given") {
  const at::Tensor a = at::arange(10.).view({5, 2}), b = at::arange(5), c = at::arange(30, at::kByte).view({5, 3, 2});
  TensorDataset alone(a);
  static_assert(std::is_same_v<decltype(alone)::BatchType, at::Tensor>);
  CHECK(alone.size() == 5u);
  CHECK(at::equal(alone.get_batch(kRows), kept_rows(a)));

  TensorDataset pair(c, b);
  static_assert(std::is_same_v<decltype(pair)::BatchType, torch::data::Example<>>);
  CHECK(at::equal(pair.get_batch(kRows).data, kept_rows(c)));
  CHECK(at::equal(pair.get_batch(kRows).target, kept_rows(b)));

  TensorDataset three(std::tuple{a, b, c});
  CHECK(at::equal(std::get<0>(three.get_batch(kRows)), kept_rows(a)));
  CHECK(at::equal(std::get<2>(three.get_batch(kRows)), kept_rows(c)));

  TensorDataset nested(std::map<std::string, std::vector<at::Tensor>>{{"x", {a, b}}, {"y", {c}}});
  CHECK(at::equal(nested.get_batch(kRows).at("x")[1], kept_rows(b)));

  TensorDataset structs(Sample{a, b, "boxes"});
  CHECK(at::equal(structs.get_batch(kRows).box, kept_rows(b)));
  CHECK(structs.get_batch(kRows).name == "boxes");
}

TEST_CASE("rows of tensors that are not contiguous are the rows, and a batch of none is empty") {
  const at::Tensor table = at::arange(20.).view({4, 5});
  TensorDataset columns(table.t());
  CHECK(at::equal(columns.get_batch(kRows), kept_rows(table.t())));
  CHECK(columns.get_batch(std::vector<std::size_t>{}).sizes() == std::vector<std::int64_t>{0, 4});
}

TEST_CASE("copies of a tensor dataset share its memory, batches have their own") {
  const at::Tensor table = at::zeros({5, 2});
  TensorDataset dataset(table);
  TensorDataset copy = dataset;
  table[1].fill_(7);
  at::Tensor batch = copy.get_batch(std::vector<std::size_t>{0, 1, 2});
  CHECK(at::equal(batch[1], at::full({2}, 7.f)));
  batch.fill_(1);
  CHECK(table[1][0].item<float>() == 7);
}

TEST_CASE("tensors that make no dataset, and rows that do not exist, are errors that say why") {
  const at::Tensor five = at::zeros({5}), four = at::zeros({4, 2});
  CHECK_THROWS_WITH(TensorDataset(five, four), ContainsSubstring("tensor 0 has 5 rows, tensor 1 has 4"));
  CHECK_THROWS_WITH(TensorDataset(at::zeros({})), ContainsSubstring("no dimension"));
  CHECK_THROWS_WITH(TensorDataset(std::vector<at::Tensor>{}), ContainsSubstring("at least one tensor"));
  TensorDataset dataset(five);
  CHECK_THROWS_WITH(dataset.get_batch(std::vector<std::size_t>{4, 5}), ContainsSubstring("sample 5 does not exist"));
  CHECK_THROWS_AS(dataset.get_batch(std::vector<std::size_t>{static_cast<std::size_t>(-1)}), DataError);
}
