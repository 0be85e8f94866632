// Numbers among what ranks exchange, and values that differ between ranks.
#include <array>
#include <cmath>
#include <complex>
#include <deque>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <variant>

#include "support/error_of.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;
using comm::ReduceOp;

namespace {

// Of a user's own: with and without word of what is in it.
struct Losses {
  at::Tensor per_sample;
  double sum = 0;
  std::int64_t items = 0;
  std::string name;
};
[[maybe_unused]] auto batch_fields(Losses& losses) { return std::tie(losses.per_sample, losses.sum, losses.items); }

struct Rows {
  at::Tensor scores;
  std::vector<std::int64_t> ids;
};
[[maybe_unused]] auto batch_fields(Rows& rows) { return std::tie(rows.scores, rows.ids); }

struct Tree {
  at::Tensor value;
  std::vector<Tree> children;
};
[[maybe_unused]] auto batch_fields(Tree& tree) { return std::tie(tree.value, tree.children); }

struct Named {
  at::Tensor value;
  std::string name;
};
[[maybe_unused]] auto batch_fields(Named& named) { return std::tie(named.value, named.name); }

struct Unsaid {
  at::Tensor value;
};
struct Nothing {};
enum class Color { red };

template <class... Types>
constexpr bool all_are_values = (RankValue<Types> && ...);
template <class... Types>
constexpr bool none_is_a_value = (!RankValue<Types> && ...);

static_assert(all_are_values<at::Tensor, bool, char, int, long, unsigned, std::size_t, std::uint8_t, float, double,
                             std::vector<double>, std::array<int, 3>, std::vector<bool>, std::pair<at::Tensor, double>,
                             std::tuple<int, float, at::Tensor>, std::optional<double>, std::map<std::string, double>,
                             std::unordered_map<int, at::Tensor>, std::vector<std::vector<float>>,
                             torch::data::Example<>, torch::data::Example<at::Tensor, std::int64_t>,
                             torch::data::TensorExample, Losses, Rows, Tree, std::vector<Losses>>);
static_assert(none_is_a_value<Unsaid, Nothing, Color, Named, std::string, const char*, std::vector<std::string>,
                              std::pair<at::Tensor, Unsaid>, std::pair<at::Tensor, std::string>, std::tuple<>,
                              std::vector<Unsaid>, std::map<int, Nothing>, std::deque<at::Tensor>, std::list<double>,
                              std::set<int>, std::span<double>, std::variant<int, at::Tensor>, double*,
                              std::unique_ptr<at::Tensor>, std::shared_ptr<double>, std::complex<double>, c10::IValue,
                              at::TensorList, at::Scalar>);

static_assert(std::is_same_v<Gathered<float>, std::vector<float>>);
static_assert(std::is_same_v<Gathered<std::vector<float>>, std::vector<float>>);
static_assert(std::is_same_v<Gathered<std::pair<at::Tensor, int>>, std::pair<at::Tensor, std::vector<int>>>);
static_assert(std::is_same_v<Gathered<std::map<std::string, double>>, std::map<std::string, std::vector<double>>>);
static_assert(std::is_same_v<Gathered<Rows>, Rows>);

// The reduction of `values` in plain code.
template <class N>
double expected(const std::vector<N>& values, ReduceOp op) {
  double result = static_cast<double>(values[0]);
  for (std::size_t i = 1; i < values.size(); ++i) {
    const double next = static_cast<double>(values[i]);
    if (op == ReduceOp::max) result = std::max(result, next);
    if (op == ReduceOp::min) result = std::min(result, next);
    if (op == ReduceOp::product) result *= next;
    if (op == ReduceOp::sum || op == ReduceOp::mean) result += next;
  }
  return op == ReduceOp::mean ? result / static_cast<double>(values.size()) : result;
}

constexpr ReduceOp kOps[] = {ReduceOp::sum, ReduceOp::mean, ReduceOp::max, ReduceOp::min, ReduceOp::product};

// Every rank's value is one of this type: all reductions of it, and the gather.
template <class N>
void check_number(int ranks) {
  std::vector<N> values;
  for (int rank = 0; rank < ranks; ++rank)
    values.push_back(static_cast<N>(std::is_same_v<N, bool> ? rank % 2 : 5 - rank));
  const auto results = on_ranks<std::vector<double>>(ranks, [&](Accelerator& a) {
    const N mine = values[static_cast<std::size_t>(a.rank())];
    std::vector<double> seen{static_cast<double>(a.reduce(mine))};
    for (const ReduceOp op : kOps) seen.push_back(a.reduce(mine, op));
    if (a.gather(mine) != values) throw std::runtime_error("gathered something else");
    return seen;
  });
  std::vector<double> right{expected(values, ReduceOp::sum)};
  for (const ReduceOp op : kOps) right.push_back(expected(values, op));
  for (const auto& result : results) CHECK(result == right);
}

}  // namespace

TEST_CASE("a number of any type is reduced by every operation, and gathered, on any number of ranks") {
  const int ranks = GENERATE(1, 2, 3);
  check_number<bool>(ranks);
  check_number<char>(ranks);
  check_number<signed char>(ranks);
  check_number<std::uint8_t>(ranks);
  check_number<short>(ranks);
  check_number<unsigned short>(ranks);
  check_number<int>(ranks);
  check_number<unsigned>(ranks);
  check_number<long>(ranks);
  check_number<long long>(ranks);
  check_number<std::size_t>(ranks);
  check_number<float>(ranks);
  check_number<double>(ranks);
}

TEST_CASE("the mean of each rank's loss is the mean over ranks, as of a tensor") {
  const auto means = on_ranks<std::pair<double, double>>(2, [](Accelerator& a) {
    const at::Tensor loss = at::scalar_tensor(a.rank() == 0 ? 1.5 : 4.0);
    const double of_number = a.reduce(loss.item<double>(), ReduceOp::mean);
    return std::pair(of_number, a.reduce(loss, ReduceOp::mean).item<double>());
  });
  for (const auto& [number, tensor] : means) {
    CHECK(number == 2.75);
    CHECK(tensor == 2.75);
  }
}

TEST_CASE("integers are reduced exactly, and the mean of plain ones is a double") {
  static constexpr std::int64_t kOdd = (std::int64_t{1} << 53) + 1;  // no double
  const auto results = on_ranks<std::vector<std::int64_t>>(3, [](Accelerator& a) {
    const double mean = a.reduce(a.rank() == 0 ? 0 : 1, ReduceOp::mean);
    if (std::abs(mean - 2.0 / 3) > 1e-15) throw std::runtime_error("another mean");
    const auto nested = a.reduce(std::tuple(kOdd, std::vector<std::int64_t>{kOdd, -kOdd}, at::scalar_tensor(1)));
    return std::vector<std::int64_t>{a.reduce(a.rank() == 0 ? kOdd : 0),
                                     a.reduce(kOdd + a.rank(), ReduceOp::max),
                                     a.reduce(std::numeric_limits<std::int64_t>::min() + a.rank(), ReduceOp::min),
                                     std::get<0>(nested),
                                     std::get<1>(nested)[1],
                                     std::get<2>(nested).item<std::int64_t>()};
  });
  for (const auto& seen : results)
    CHECK(seen ==
          std::vector<std::int64_t>{kOdd, kOdd + 2, std::numeric_limits<std::int64_t>::min(), 3 * kOdd, -3 * kOdd, 3});
}

TEST_CASE("what does not fit is the same error on all ranks, after which they go on") {
  using Bytes = std::pair<std::int8_t, double>;
  const std::vector<std::pair<const char*, std::function<void(Accelerator&)>>> calls{
      {"64 bits", [](Accelerator& a) { a.reduce(std::numeric_limits<std::int64_t>::max() - a.rank()); }},
      {"64 bits", [](Accelerator& a) { a.reduce(std::int64_t{1} << 40, ReduceOp::product); }},
      {"does not fit", [](Accelerator& a) { a.reduce(std::numeric_limits<std::uint64_t>::max() - 5, ReduceOp::max); }},
      {"200 does not fit", [](Accelerator& a) { a.reduce(Bytes(100, 1.0)); }},
      {"2 does not fit", [](Accelerator& a) { a.reduce(std::vector<bool>{true}); }},
      {"is no such integer", [](Accelerator& a) { a.reduce(std::vector<int>{1}, ReduceOp::mean); }},
      {"is no such integer", [](Accelerator& a) { a.reduce(std::pair(a.rank(), at::ones({1})), ReduceOp::mean); }},
      {"0.5", [](Accelerator& a) { (void)static_cast<int>(a.reduce(a.rank(), ReduceOp::mean)); }},
      {"use sum, mean", [](Accelerator& a) { a.reduce(1.5, static_cast<ReduceOp>(9)); }}};
  for (const auto& [text, call] : calls) {
    const auto seen = on_ranks<std::pair<std::string, std::int64_t>>(2, [&call = call](Accelerator& a) {
      std::string error = error_of<CollectiveError>([&] { call(a); });
      return std::pair(std::move(error), a.reduce(a.rank() + 1));
    });
    CAPTURE(text);
    CHECK_THAT(seen[0].first, ContainsSubstring(text));
    CHECK(seen[0].first == seen[1].first);
    CHECK(seen[0].second == 3);
  }
}

TEST_CASE("a NaN among numbers reaches sum, mean, max and min") {
  const auto results = on_ranks<std::vector<double>>(3, [](Accelerator& a) {
    std::vector<double> seen;
    for (const ReduceOp op : kOps) seen.push_back(a.reduce(a.rank() == 1 ? NAN : 1.0, op));
    return seen;
  });
  for (const double value : results[2]) CHECK(std::isnan(value));
}

TEST_CASE("numbers in any nesting are reduced, gathered and broadcast with the tensors beside them") {
  const auto right = on_ranks<std::vector<bool>>(3, [](Accelerator& a) {
    const int r = a.rank();
    std::vector<bool> ok;
    const Losses mine{at::full({2}, r), r + 0.5, r, "rank " + std::to_string(r)};
    const Losses sum = a.reduce(mine);
    ok.push_back(at::equal(sum.per_sample, at::full({2}, 3)) && sum.sum == 4.5 && sum.items == 3);
    ok.push_back(sum.name == mine.name && mine.sum == r + 0.5);

    const std::map<std::string, std::optional<double>> metrics{{"loss", r}, {"none", std::nullopt}};
    const auto mean = a.reduce(metrics, ReduceOp::mean);
    ok.push_back(mean.at("loss") == 1.0 && !mean.at("none"));
    const auto all = a.gather(metrics);
    ok.push_back(all.at("loss") == std::vector<double>{0, 1, 2} && !all.at("none"));

    const auto [rows, ranks, texts] = a.gather(
        std::tuple(std::vector<int>(static_cast<std::size_t>(r), r), std::array<bool, 1>{r == 1}, at::full({r, 1}, r)));
    ok.push_back(rows == std::vector<int>{1, 2, 2} && ranks == std::vector<bool>{false, true, false});
    ok.push_back(texts.size(0) == 3);
    const Rows joined = a.gather(Rows{at::full({1}, r), {r, -r}});
    ok.push_back(joined.ids == std::vector<std::int64_t>{0, 0, 1, -1, 2, -2} && joined.scores.size(0) == 3);
    const auto example = a.gather(torch::data::Example<at::Tensor, float>(at::ones({1}), static_cast<float>(r)));
    ok.push_back(example.target == std::vector<float>{0, 1, 2});
    const auto tree = a.reduce(Tree{at::ones({1}), {Tree{at::full({1}, r), {}}}});
    ok.push_back(tree.children[0].value.item<int>() == 3);

    std::unordered_map<std::string, std::vector<float>> settings{{"lr", {0.1f * static_cast<float>(r + 1)}},
                                                                 {"betas", {static_cast<float>(r), 1}}};
    a.broadcast(settings, 2);
    ok.push_back(settings.at("lr")[0] == 0.1f * 3.0f && settings.at("betas") == std::vector<float>{2, 1});
    double lr = r;
    bool flag = r == 1;
    a.broadcast(lr, 1);
    a.broadcast(flag, 1);
    ok.push_back(lr == 1.0 && flag);
    return ok;
  });
  for (const auto& ok : right) CHECK(ok == std::vector<bool>(ok.size(), true));
}

TEST_CASE("pad_across_ranks pads rows of numbers as tensors of one dim, and leaves single numbers") {
  const auto results = on_ranks<std::pair<std::vector<int>, std::vector<double>>>(2, [](Accelerator& a) {
    const int r = a.rank();
    const auto [ids, row, number] = a.pad_across_ranks(
        std::tuple(std::vector<int>(static_cast<std::size_t>(2 * r), r), std::vector<double>{1.5}, 7.0), 0, -100);
    if (number != 7.0) throw std::runtime_error("padded a number");
    return std::pair(ids, a.pad_across_ranks(std::vector<double>(static_cast<std::size_t>(r), 2), -1, 0.5, true));
  });
  CHECK(results[0].first == std::vector<int>{-100, -100});
  CHECK(results[1].first == std::vector<int>{1, 1});
  CHECK(results[0].second == std::vector<double>{0.5});
  const auto error = run_ranks_expecting_error(
      2, [](Accelerator& a) { a.pad_across_ranks(at::ones({a.rank() + 1}, at::kLong), 0, 0.5); });
  CHECK_THAT(error.what(), ContainsSubstring("use a whole number"));
}

TEST_CASE("gather_for_metrics cuts rows of numbers as it cuts tensors") {
  const auto seen = on_ranks<std::vector<std::int64_t>>(2, [](Accelerator& a) {
    data::DataLoader samples(data::TensorDataset(at::arange(7)), {.batch_size = 2});
    auto loader = a.prepare(samples);
    std::vector<std::int64_t> all;
    for (auto& batch : loader) {
      std::vector<std::int64_t> mine(batch.data_ptr<std::int64_t>(), batch.data_ptr<std::int64_t>() + batch.numel());
      for (const auto id : a.gather_for_metrics(mine)) all.push_back(id);
    }
    return all;
  });
  for (const auto& all : seen) CHECK(all == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6});
}

namespace {

// A label beside its picture, as a plain number.
struct Labelled : torch::data::datasets::Dataset<Labelled, std::pair<at::Tensor, int>> {
  std::pair<at::Tensor, int> get(std::size_t index) override { return {at::ones({2}), static_cast<int>(index)}; }
  std::optional<std::size_t> size() const override { return 4; }
};

}  // namespace

TEST_CASE("samples with numbers beside their tensors are an error that says so, not a batch with the first one's") {
  const auto error = run_ranks_expecting_error(1, [](Accelerator& a) {
    auto loader = a.prepare(data::DataLoader(Labelled(), {.batch_size = 2}));
    for (auto& batch : loader) static_cast<void>(batch);
  });
  CHECK_THAT(error.what(), ContainsSubstring("make the numbers tensors, or give the loader a collation"));
  run_ranks(1, [](Accelerator& a) {
    using Samples = std::vector<std::pair<at::Tensor, int>>;
    std::int64_t sum = 0;
    for (auto& label :
         a.prepare(data::DataLoader(Labelled(), {.batch_size = 2}).with_collate([](const Samples& samples) {
           return at::tensor({samples[0].second, samples[1].second});
         })))
      sum += label.sum().item<std::int64_t>();
    for (auto& [image, label] : a.prepare(data::DataLoader(Labelled()))) sum += label;  // batches of one are samples
    if (sum != 12) throw std::runtime_error("other labels");
  });
}

// ---- every operation over ranks, with whatever may differ between them

namespace {

using Nest = std::map<std::string, std::vector<at::Tensor>>;

struct Difference {
  std::string what;
  Nest first, second;                 // of rank 0, and of rank 1
  std::vector<std::string> in_texts;  // both sides
  bool of_pad = true, of_gather = true;
};

std::vector<Difference> differences() {
  const auto one = [](at::Tensor tensor) { return Nest{{"x", {std::move(tensor)}}}; };
  const at::Tensor ones = at::ones({1, 5});
  return {
      {"dims", one(ones), one(at::ones({1, 1, 6})), {"Float[1, 5]", "Float[1, 1, 6]"}},
      {"0-dim", one(at::scalar_tensor(1)), one(at::ones({1})), {"Float[]", "Float[1]"}},
      {"type", one(ones), one(ones.to(at::kLong)), {"Float[1, 5]", "Long[1, 5]"}},
      {"narrow type", one(ones), one(ones.to(at::kBFloat16)), {"Float[1, 5]", "BFloat16[1, 5]"}},
      {"device", one(ones), one(at::ones({1, 5}, at::kMeta)), {"meta"}},
      {"defined", one(ones), one(at::Tensor()), {"Float[1, 5]", "undefined"}},
      {"number of tensors", one(ones), {{"x", {ones, ones}}}, {"[Float[1, 5]]", "[Float[1, 5], Float[1, 5]]"}},
      {"no tensors", one(ones), {{"x", {}}}, {"[Float[1, 5]]", "[]"}},
      {"keys", one(ones), {{"y", {ones}}}, {"x: ", "y: "}},
      {"which is defined",
       {{"x", {ones, at::Tensor()}}},
       {{"x", {at::Tensor(), ones}}},
       {"Float[1, 5], an undefined", "tensor, Float[1, 5]"}},
      {"sizes behind dim 0", one(ones), one(at::ones({1, 6})), {"[1, 5]", "[1, 6]"}, false},
      {"sizes in dim 0", one(ones), one(at::ones({2, 5})), {"[1, 5]", "[2, 5]"}, false, false},
  };
}

struct Operation {
  std::string name;
  std::function<void(Accelerator&, const Nest&)> call;
};

std::vector<Operation> operations() {
  return {{"gather", [](Accelerator& a, const Nest& nest) { a.gather(nest); }},
          {"gather_for_metrics", [](Accelerator& a, const Nest& nest) { a.gather_for_metrics(nest); }},
          {"reduce", [](Accelerator& a, const Nest& nest) { a.reduce(nest); }},
          {"broadcast",
           [](Accelerator& a, Nest nest) {
             for (auto& [key, tensors] : nest)
               for (auto& tensor : tensors)
                 if (tensor.defined()) tensor = tensor.clone();
             a.broadcast(nest, 1);
           }},
          {"pad_across_ranks", [](Accelerator& a, const Nest& nest) { a.pad_across_ranks(nest, 1); }}};
}

// The text that each rank got, or what it could not do afterwards.
std::vector<std::string> texts_of(int ranks, const std::function<void(Accelerator&)>& call) {
  return on_ranks<std::string>(ranks, [&](Accelerator& a) {
    std::string text = error_of<CollectiveError>([&] { call(a); });
    if (a.reduce(1) != a.world_size()) text = "the next call went wrong";
    return text;
  });
}

}  // namespace

TEST_CASE("whatever differs between ranks, in whichever operation, is one error on all of them that names both") {
  for (const Operation& operation : operations())
    for (const Difference& difference : differences())
      for (const int odd : {0, 1, 2}) {
        if (operation.name == "pad_across_ranks" && !difference.of_pad) continue;
        if (operation.name.starts_with("gather") && !difference.of_gather) continue;
        const auto texts = texts_of(
            3, [&](Accelerator& a) { operation.call(a, a.rank() == odd ? difference.second : difference.first); });
        CAPTURE(operation.name, difference.what, odd, texts[0]);
        for (const std::string& text : texts) {
          CHECK(text == texts[0]);
          for (const std::string& side : difference.in_texts) CHECK_THAT(text, ContainsSubstring(side));
        }
      }
}

TEST_CASE("numbers that differ in kind or length between ranks are an error that names both") {
  const auto length = [](Accelerator& a) { return std::vector<double>(static_cast<std::size_t>(a.rank() + 1), 1.0); };
  for (const auto& text : texts_of(2, [&](Accelerator& a) { a.reduce(length(a)); }))
    CHECK_THAT(text, ContainsSubstring("double x 1 on rank 0") && ContainsSubstring("double x 2 on rank 1"));
  for (const auto& text : texts_of(2, [&](Accelerator& a) {
         auto row = length(a);
         a.broadcast(row);
       }))
    CHECK_THAT(text, ContainsSubstring("double x 1") && ContainsSubstring("double x 2"));
  for (const auto& text : texts_of(2, [&](Accelerator& a) { a.is_main() ? (void)a.reduce(1.5) : (void)a.reduce(1); }))
    CHECK_THAT(text, ContainsSubstring("double on rank 0") && ContainsSubstring("int32 on rank 1"));
  for (const auto& text :
       texts_of(2, [&](Accelerator& a) { a.is_main() ? (void)a.gather(at::ones({1})) : (void)a.gather(1.5f); }))
    CHECK_THAT(text, ContainsSubstring("Float[1] on rank 0") && ContainsSubstring("float on rank 1"));
  for (const auto& text : texts_of(2, [&](Accelerator& a) {
         const std::optional<double> mine = a.is_main() ? std::optional(1.0) : std::nullopt;
         a.gather(mine);
       }))
    CHECK_THAT(text, ContainsSubstring("[double] on rank 0") && ContainsSubstring("[] on rank 1"));
}

TEST_CASE("operations and roots that differ between ranks are an error that names both") {
  for (const auto& text :
       texts_of(2, [](Accelerator& a) { a.reduce(at::ones({3}), a.is_main() ? ReduceOp::sum : ReduceOp::max); }))
    CHECK_THAT(text, ContainsSubstring("all_reduce(sum)") && ContainsSubstring("all_reduce(max)"));
  for (const auto& text : texts_of(2, [](Accelerator& a) {
         at::Tensor x = at::ones({3});
         a.broadcast(x, a.rank());
       }))
    CHECK_THAT(text, ContainsSubstring("from rank 0") && ContainsSubstring("from rank 1"));
  for (const auto& text : texts_of(2, [](Accelerator& a) { a.broadcast_object(1.5, a.rank()); }))
    CHECK_THAT(text, ContainsSubstring("from rank 0") && ContainsSubstring("from rank 1"));
  for (const auto& text : texts_of(2, [](Accelerator& a) { a.pad_across_ranks(at::ones({3, 3}), a.rank()); }))
    CHECK_THAT(text, ContainsSubstring("pad_across_ranks(dim 0)") && ContainsSubstring("pad_across_ranks(dim 1)"));
}

TEST_CASE("a value that cannot be used is refused on all ranks, whichever rank has it") {
  const std::vector<std::pair<const char*, at::Tensor>> unusable{
      {"an undefined tensor", at::Tensor()}, {"meta", at::ones({2}, at::kMeta)}, {"Sparse", at::ones({2}).to_sparse()}};
  using Call = std::function<void(Accelerator&, at::Tensor)>;
  const std::vector<Call> calls{[](Accelerator& a, const at::Tensor& x) { a.gather(x); },
                                [](Accelerator& a, const at::Tensor& x) { a.gather_for_metrics(x); },
                                [](Accelerator& a, const at::Tensor& x) { a.reduce(x); },
                                [](Accelerator& a, at::Tensor x) { a.broadcast(x); },
                                [](Accelerator& a, const at::Tensor& x) { a.pad_across_ranks(x); }};
  for (const auto& [text, tensor] : unusable)
    for (std::size_t i = 0; i < calls.size(); ++i)
      for (const int odd : {0, 1, -1}) {
        const bool pads_meta = i == 4 && odd < 0 && tensor.defined() && tensor.is_meta();
        if (pads_meta) continue;  // nothing is exchanged but sizes
        const auto texts = texts_of(
            2, [&, &bad = tensor](Accelerator& a) { calls[i](a, odd < 0 || a.rank() == odd ? bad : at::ones({2})); });
        CAPTURE(text, i, odd);
        CHECK_THAT(texts[0], ContainsSubstring(text));
        CHECK(texts[0] == texts[1]);
      }
}

TEST_CASE("broadcast into a tensor with several elements in one place is refused on all ranks") {
  for (const auto& text : texts_of(3, [](Accelerator& a) {
         at::Tensor value = a.rank() == 2 ? at::ones({1, 3}).expand({2, 3}) : at::ones({2, 3});
         a.broadcast(value, 1);
       }))
    CHECK_THAT(text, ContainsSubstring("expanded") && ContainsSubstring("clone()"));
  run_ranks(2, [](Accelerator& a) {  // what is sent may be
    at::Tensor value = a.rank() == 1 ? at::ones({1, 3}).expand({2, 3}) : at::zeros({2, 3});
    a.broadcast(value, 1);
    if (value.sum().item<float>() != 6) throw Error("not broadcast");
  });
}

TEST_CASE("split_between_ranks of what has no rows is an error that says so") {
  run_ranks(1, [](Accelerator& a) {
    const auto none = error_of<DataError>([&] { a.split_between_ranks(at::Tensor()); });
    const auto scalar = error_of<DataError>([&] { a.split_between_ranks(at::scalar_tensor(1)); });
    if (none.find("an undefined tensor") == std::string::npos) throw std::runtime_error(none);
    if (scalar.find("a 0-dim tensor") == std::string::npos) throw std::runtime_error(scalar);
  });
}

TEST_CASE("objects of other types are named") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& a) {
    if (a.is_main())
      a.gather_objects(1);
    else
      a.gather_objects(std::vector<float>{1});
  });
  CHECK_THAT(error.what(), ContainsSubstring("gather_objects of int") && ContainsSubstring("std::vector<float"));
}
