// Metrics beside scikit-learn (data/metrics.json, by data/record_metrics.py), on any number of ranks.
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/error_of.h"
#include "support/ranks.h"
#include "tandem/metrics/classification.h"
#include "tandem/metrics/exact_sum.h"
#include "tandem/metrics/language.h"
#include "tandem/metrics/regression.h"

using namespace tandem;
using namespace tandem::test;
using nlohmann::json;

namespace {

const json& recorded() {
  static const json all = [] {
    const char* const root = std::getenv("TANDEM_SOURCE_DIR");
    std::ifstream file(std::string(root ? root : ".") + "/tests/metrics/data/metrics.json");
    return json::parse(file);
  }();
  return all;
}

at::Tensor tensor_of(const json& value, at::ScalarType type) {
  if (!value.is_array()) {
    const bool whole = value.is_number_integer() || value.is_boolean();
    if (value.is_boolean()) return at::scalar_tensor(value.get<bool>() ? 1 : 0, type);
    return whole ? at::scalar_tensor(value.get<std::int64_t>(), type)
                 : at::scalar_tensor(value.is_null() ? std::nan("") : value.get<double>(), at::kDouble).to(type);
  }
  std::vector<at::Tensor> parts;
  for (const json& part : value) parts.push_back(tensor_of(part, type));
  return parts.empty() ? at::empty({0}, type) : at::stack(parts);
}

using MakeMetric = std::function<std::unique_ptr<metrics::Metric>(Rank&)>;

template <class Metric, class... Options>
MakeMetric maker(Options... options) {
  return [options...](Rank& rank) { return std::make_unique<Metric>(rank, options...); };
}

std::string bits(const at::Tensor& tensor) {
  const at::Tensor all = tensor.contiguous();
  return std::string(static_cast<const char*>(all.const_data_ptr()), all.nbytes()) + c10::str(tensor.sizes());
}

// The result of a metric on ranks that get the samples in batches of different lengths, some none.
at::Tensor by_hand(int ranks, const MakeMetric& make, const at::Tensor& outputs, const at::Tensor& targets) {
  return on_ranks<at::Tensor>(ranks, [&](Accelerator& a) {
    const auto metric = make(a);
    metric->update(outputs, targets);
    metric->reset();  // of what does not count
    std::int64_t begin = 0;
    for (int turn = 0; begin < outputs.size(0); ++turn) {
      const std::int64_t rows = std::min<std::int64_t>(1 + turn * 7 % 5, outputs.size(0) - begin);
      if (turn * turn % ranks == a.rank())
        metric->update(outputs.narrow(0, begin, rows), targets.narrow(0, begin, rows));
      begin += rows;
    }
    metric->compute();  // which changes nothing
    return metric->compute();
  })[static_cast<std::size_t>(ranks) - 1];
}

// The same through a loader, whose last step has samples again.
at::Tensor by_loader(int ranks, const MakeMetric& make, const at::Tensor& outputs, const at::Tensor& targets, bool even,
                     bool dispatch) {
  LaunchConfig config;
  config.data_loader.even_batches = even;
  config.data_loader.dispatch_batches = dispatch;
  return on_ranks<at::Tensor>(ranks, config, [&](Accelerator& a) {
    auto loader = a.prepare(data::DataLoader(data::TensorDataset(outputs, targets), {.batch_size = 3}));
    const auto metric = make(a);
    for (auto& batch : loader) metric->update(batch.data, batch.target);
    return metric->compute();
  })[0];
}

// Checks that a metric gives the same bits however the samples are spread, and returns what it gives.
at::Tensor on_any_ranks(const MakeMetric& make, const at::Tensor& outputs, const at::Tensor& targets) {
  const at::Tensor one = by_hand(1, make, outputs, targets);
  for (int ranks : {2, 4}) CHECK(bits(by_hand(ranks, make, outputs, targets)) == bits(one));
  for (const bool even : {true, false}) CHECK(bits(by_loader(4, make, outputs, targets, even, false)) == bits(one));
  CHECK(bits(by_loader(3, make, outputs, targets, true, true)) == bits(one));
  return one;
}

void check_equal(const at::Tensor& actual, const json& expected) {
  const at::Tensor wanted = tensor_of(expected, at::kDouble);
  INFO(actual << " beside " << wanted);
  CHECK(actual.sizes() == wanted.sizes());
  CHECK(at::allclose(actual.to(at::kDouble), wanted, 1e-12, 0, /*equal_nan=*/true));
}

double zero_division_of(const std::string& text) { return text == "nan" ? std::nan("") : std::stod(text); }

template <class Score>
void check_scores(const char* name, const at::Tensor& outputs, const at::Tensor& targets, const json& expected) {
  for (const char* zero : {"0.0", "1.0", "nan"}) {
    INFO(name << " with " << zero << " for 0 / 0");
    const json& wanted = expected.at(std::string(name) + " " + zero);
    const auto score = [&](metrics::Average average) {
      const auto make = maker<Score>(metrics::ClassScoreOptions{
          .classes = outputs.size(1), .average = average, .zero_division = zero_division_of(zero)});
      return std::string(zero) == "0.0" ? on_any_ranks(make, outputs, targets) : by_hand(2, make, outputs, targets);
    };
    check_equal(score(metrics::Average::macro), wanted.at("macro"));
    check_equal(score(metrics::Average::micro), wanted.at("micro"));
    check_equal(score(metrics::Average::per_class), wanted.at("per_class"));
  }
}

}  // namespace

TEST_CASE("metrics of classes are scikit-learn's, on any number of ranks") {
  for (const json& one : recorded().at("classes")) {
    INFO(one.at("name").get<std::string>());
    const at::Tensor scores = tensor_of(one.at("scores"), at::kDouble),
                     targets = tensor_of(one.at("targets"), at::kLong);
    const json& expected = one.at("expected");
    const std::int64_t classes = scores.size(1);
    check_equal(on_any_ranks(maker<metrics::ConfusionMatrix>(classes), scores, targets), expected.at("confusion"));
    check_equal(on_any_ranks(maker<metrics::ConfusionMatrix>(classes), scores.argmax(1), targets),
                expected.at("confusion"));
    std::int64_t k = 1;
    for (const json& top : expected.at("top"))
      check_equal(on_any_ranks(maker<metrics::TopKAccuracy>(metrics::TopKAccuracyOptions{.k = k++}), scores, targets),
                  top);
    check_scores<metrics::Precision>("precision", scores, targets, expected);
    check_scores<metrics::Recall>("recall", scores, targets, expected);
    check_scores<metrics::F1>("f1", scores, targets, expected);
    const metrics::RankingOptions each{.average = metrics::Average::per_class};
    check_equal(on_any_ranks(maker<metrics::Auroc>(each), scores, targets), expected.at("auroc"));
    check_equal(on_any_ranks(maker<metrics::AveragePrecision>(each), scores, targets),
                expected.at("average_precision"));
    check_equal(on_any_ranks(maker<metrics::Auroc>(), scores, targets).reshape({1}),
                json::array({tensor_of(expected.at("auroc"), at::kDouble).mean().item<double>()}));
    check_equal(on_any_ranks(maker<metrics::Perplexity>(), scores, targets), expected.at("perplexity"));
    const metrics::LanguageOptions bytes{.bytes_of_token = at::arange(classes) + 1};
    check_equal(on_any_ranks(maker<metrics::BitsPerByte>(bytes), scores, targets), expected.at("bits_per_byte"));
  }
}

TEST_CASE("rankings of two classes and regressions are scikit-learn's, on any number of ranks") {
  for (const json& one : recorded().at("binary")) {
    INFO(one.at("name").get<std::string>());
    const at::Tensor scores = tensor_of(one.at("scores"), at::kDouble),
                     targets = tensor_of(one.at("targets"), at::kLong);
    check_equal(on_any_ranks(maker<metrics::Auroc>(), scores, targets), one.at("expected").at("auroc"));
    check_equal(on_any_ranks(maker<metrics::AveragePrecision>(), scores, targets == 1),
                one.at("expected").at("average_precision"));
  }
  for (const json& one : recorded().at("regression")) {
    INFO(one.at("name").get<std::string>());
    const at::Tensor outputs = tensor_of(one.at("outputs"), at::kDouble),
                     targets = tensor_of(one.at("targets"), at::kDouble);
    check_equal(on_any_ranks(maker<metrics::MeanSquaredError>(), outputs, targets), one.at("expected").at("mse"));
    check_equal(on_any_ranks(maker<metrics::MeanAbsoluteError>(), outputs, targets), one.at("expected").at("mae"));
    check_equal(on_any_ranks(maker<metrics::R2>(), outputs, targets), one.at("expected").at("r2"));
  }
}

TEST_CASE("an exact sum is the nearest float64 to what was added, in any order") {
  for (const json& one : recorded().at("sums")) {
    const at::Tensor values = tensor_of(one.at("values"), at::kDouble);
    at::Tensor sum = metrics::exact_zero(), parts = metrics::exact_zero();
    metrics::exact_add(sum, values);
    for (std::int64_t i = values.numel(); i-- > 0;) {
      at::Tensor part = metrics::exact_zero();
      metrics::exact_add(part, values[i]);
      parts.add_(part);
    }
    const double wanted = one.at("sum").get<double>();
    CHECK(metrics::exact_value(sum) == wanted);
    CHECK(metrics::exact_value(parts) == wanted);
    metrics::exact_add(sum, -values);
    CHECK(metrics::exact_value(sum) == 0);
  }
}

TEST_CASE("tokens that are ignored do not count, and impossible ones are infinitely surprising") {
  run_ranks(2, [](Accelerator& a) {
    const at::Tensor logits = at::tensor({0.0, 1.0, -2.0}).log_softmax(0).expand({1, 4, 3});
    metrics::Perplexity perplexity(a, {.ignored_target = 7});
    perplexity.update(logits, at::tensor({7, 1, 7, 7}).view({1, 4}));
    const double wanted = std::exp(-logits[0][0][1].to(at::kDouble).log_softmax(0).item<double>() +
                                   -logits[0][0].to(at::kDouble).log_softmax(0)[1].item<double>());
    if (!(std::abs(perplexity.compute().item<double>() - wanted) < 1e-12)) throw std::runtime_error("perplexity");
    at::Tensor never = logits.clone();
    never.select(2, 1).fill_(-std::numeric_limits<double>::infinity());
    perplexity.update(never, at::ones({1, 4}, at::kLong));
    if (!std::isinf(perplexity.compute().item<double>())) throw std::runtime_error("infinite");
  });
}

namespace {

// One that a program makes of its own.
struct ShareOfZeros : metrics::Metric {
  explicit ShareOfZeros(Rank& rank) : Metric(rank, "ShareOfZeros") {
    add_state("zeros", metrics::Merge::sum, at::zeros({}, at::kLong));
    add_state("all", metrics::Merge::sum, at::zeros({}, at::kLong));
  }
  void add(const at::Tensor& outputs, const at::Tensor&) override {
    state("zeros").add_((outputs == 0).sum());
    state("all").add_(outputs.numel());
  }
  at::Tensor result(const States& of_all) const override {
    return of_all.at("zeros").to(at::kDouble) / of_all.at("all").to(at::kDouble);
  }
};

struct WrongSum : metrics::Metric {
  explicit WrongSum(Rank& rank) : Metric(rank, "WrongSum") { add_state("sum", metrics::Merge::sum, at::zeros({})); }
  void add(const at::Tensor&, const at::Tensor&) override {}
  at::Tensor result(const States& of_all) const override { return of_all.at("sum"); }
};

}  // namespace

TEST_CASE("a program has metrics of its own") {
  const at::Tensor outputs = at::arange(11) % 3;
  CHECK(on_any_ranks(maker<ShareOfZeros>(), outputs, outputs).item<double>() == 4.0 / 11);
  const auto errors =
      on_ranks<std::string>(1, [](Accelerator& a) { return error_of<ConfigError>([&] { WrongSum metric(a); }); });
  CHECK_THAT(errors[0], ContainsSubstring("WrongSum: state 'sum' is a sum of Float, which depends on the order"));
}

TEST_CASE("what a metric cannot judge is one sentence, and leaves it as it was") {
  struct Wrong {
    MakeMetric make;
    at::Tensor outputs, targets;
    std::string says;
  };
  const at::Tensor scores = at::rand({4, 3}), labels = at::tensor({0, 1, 2, 1});
  at::Tensor nan = scores.clone();
  nan[3][1] = std::nan("");
  const auto top = maker<metrics::TopKAccuracy>();
  const auto matrix = maker<metrics::ConfusionMatrix>(std::int64_t{3});
  const auto f1 = maker<metrics::F1>(metrics::ClassScoreOptions{.classes = 3});
  const auto auroc = maker<metrics::Auroc>(), precision = maker<metrics::AveragePrecision>();
  const auto mse = maker<metrics::MeanSquaredError>(), mae = maker<metrics::MeanAbsoluteError>(),
             r2 = maker<metrics::R2>();
  const auto perplexity = maker<metrics::Perplexity>(), bits_per_byte = maker<metrics::BitsPerByte>();
  const at::Tensor three = at::tensor({0, 1, 3, 1}), negative = at::tensor({0, -1, 2, 1});
  std::vector<Wrong> all;
  for (const auto& make : {top, matrix, f1, auroc, precision, perplexity, bits_per_byte}) {
    all.push_back({make, nan, labels, "is NaN"});
    all.push_back({make, scores, three, "a class of 3 among the targets; there are 3 classes, from 0"});
    all.push_back({make, scores, negative, "a class of -1 among the targets"});
    all.push_back({make, scores, labels.to(at::kFloat), "integers"});
    all.push_back({make, scores, labels.narrow(0, 0, 3), "both have a row (dim 0) for each sample"});
    all.push_back({make, scores, at::Tensor(), "one is undefined"});
    all.push_back({make, scores.unsqueeze(2).expand({4, 3, 2}), labels, "outputs of shape"});
  }
  all.push_back({matrix, at::rand({4, 5}), labels, "scores of 5 classes; there are 3"});
  all.push_back({matrix, three, labels, "a class of 3 among the outputs"});
  all.push_back({matrix, at::rand({4}), labels, "outputs are Float; classes are integers"});
  all.push_back({auroc, at::rand({4}), labels, "a class of 2 among the targets; there are 2 classes"});
  all.push_back({auroc, labels, labels, "scores are Int"});
  for (const auto& make : {mse, mae, r2}) {
    all.push_back({make, nan, scores, "an output is infinite or NaN"});
    all.push_back({make, scores, nan / 0, "a target is infinite or NaN"});
    all.push_back({make, scores, scores.narrow(1, 0, 1), "they have one shape"});
    all.push_back({make, scores.select(1, 0), scores.narrow(1, 0, 1), "they have one shape"});
  }
  run_ranks(1, [&](Accelerator& a) {
    for (const Wrong& one : all) {
      const auto metric = one.make(a);
      const auto problem = error_of<DataError>([&] { metric->update(one.outputs, one.targets); });
      INFO("wanted '" << one.says << "', got '" << problem << "'");
      CHECK_THAT(problem, ContainsSubstring(one.says));
      CHECK(problem.find('\n') == std::string::npos);
      CHECK_THAT(error_of<DataError>([&] { metric->compute(); }), ContainsSubstring("no rank has given it a sample"));
    }
    CHECK_THAT(error_of<ConfigError>([&] { metrics::TopKAccuracy metric(a, {.k = 0}); }), ContainsSubstring("k is 0"));
    CHECK_THAT(error_of<ConfigError>([&] { metrics::ConfusionMatrix metric(a, 0); }), ContainsSubstring("0 classes"));
    CHECK_THAT(error_of<ConfigError>([&] { metrics::Auroc metric(a, {.average = metrics::Average::micro}); }),
               ContainsSubstring("micro"));
    CHECK_THAT(error_of<ConfigError>([&] { metrics::BitsPerByte metric(a, {.bytes_of_token = at::rand({3})}); }),
               ContainsSubstring("bytes_of_token"));
  });
}

TEST_CASE("ranks whose outputs do not fit each other are told so, all alike") {
  const auto errors = on_ranks<std::string>(3, [](Accelerator& a) {
    metrics::Auroc metric(a);
    if (a.rank() < 2) metric.update(at::rand({4, 3 + a.rank()}), at::tensor({0, 1, 2, 1}));
    return error_of<DataError>([&] { metric.compute(); });
  });
  for (const auto& error : errors) {
    CHECK(error == errors[0]);
    CHECK_THAT(error, ContainsSubstring("other shapes"));
  }
}
