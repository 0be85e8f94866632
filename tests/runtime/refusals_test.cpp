// An error that one rank finds in a collective call is that of all ranks, and a body that catches it can go on.
#include <chrono>
#include <fstream>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>

#include "support/error_of.h"
#include "support/ranks.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// What each rank got, and whether all of them could go on afterwards.
struct Outcome {
  std::string text;
  bool goes_on = false;
};

std::vector<Outcome> outcomes(int ranks, const LaunchConfig& config, const std::function<void(Accelerator&)>& call) {
  return on_ranks<Outcome>(ranks, config, [&](Accelerator& a) {
    Outcome outcome;
    try {
      call(a);
    } catch (const Cancelled&) {
      throw;
    } catch (const std::exception& error) {
      outcome.text = error.what();
    }
    torch::nn::Linear net(2, 1);
    auto model = a.prepare(net);
    a.backward(model(torch::ones({1, 2})).sum());
    outcome.goes_on = a.reduce(a.rank() + 1) == a.world_size() * (a.world_size() + 1) / 2;
    return outcome;
  });
}

std::vector<Outcome> outcomes(int ranks, const std::function<void(Accelerator&)>& call) {
  return outcomes(ranks, {}, call);
}

void check_same(const std::vector<Outcome>& outcomes, const std::string& text) {
  CAPTURE(text, outcomes[0].text);
  CHECK_THAT(outcomes[0].text, ContainsSubstring(text));
  for (const Outcome& outcome : outcomes) {
    CHECK(outcome.text == outcomes[0].text);
    CHECK(outcome.goes_on);
  }
}

struct MyError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A dataset that may not know its length.
class Shy : public torch::data::datasets::Dataset<Shy, at::Tensor> {
 public:
  enum class Size { known, unknown, throws };
  explicit Shy(Size size) : size_(size) {}
  at::Tensor get(std::size_t index) override { return at::scalar_tensor(static_cast<std::int64_t>(index)); }
  std::optional<std::size_t> size() const override {
    if (size_ == Size::throws) throw MyError("the index is locked");
    return size_ == Size::known ? std::optional<std::size_t>(10) : std::nullopt;
  }

 private:
  Size size_;
};

data::DataLoader<data::IterableDataset<at::Tensor>> stream(data::DataLoaderOptions options) {
  return data::DataLoader(data::IterableDataset(std::vector<at::Tensor>{at::ones({1})}), std::move(options));
}

struct LoaderCase {
  std::string text;
  std::function<void(Accelerator&, bool odd)> prepare;  // `odd`: this rank's loader is the faulty one
  LaunchConfig config{};
};

LoaderCase with_options(const std::string& text, const data::DataLoaderOptions& options, LaunchConfig config = {}) {
  return {text,
          [options](Accelerator& a, bool odd) {
            a.prepare(data::DataLoader(Shy(Shy::Size::known), odd ? options : data::DataLoaderOptions()));
          },
          std::move(config)};
}

std::vector<LoaderCase> loader_cases() {
  const auto sampler = std::make_shared<data::SequentialSampler>();
  const auto of_size = [](Shy::Size size) {
    return [size](Accelerator& a, bool odd) { a.prepare(data::DataLoader(Shy(odd ? size : Shy::Size::known))); };
  };
  return {with_options("shuffle and sampler", {.shuffle = true, .sampler = sampler}),
          with_options("workers -1", {.workers = -1}),
          with_options("prefetch 0", {.prefetch = 0}),
          with_options("timeout", {.timeout = std::chrono::milliseconds(-1)}),
          with_options("batch_size", {.batch_size = 0}),
          with_options("batch_size", {.batch_size = 4}, {.data_loader = {.split_batches = true}}),
          {"does not know its size", of_size(Shy::Size::unknown)},
          {"the index is locked", of_size(Shy::Size::throws)},
          {"cannot be shuffled", [](Accelerator& a, bool odd) { a.prepare(stream({.shuffle = odd})); }}};
}

}  // namespace

TEST_CASE("an error in prepare of a loader is the same on all ranks, whichever has it, and can be caught") {
  for (const LoaderCase& one : loader_cases())
    for (const int odd : {-1, 0, 1, 2})
      check_same(outcomes(3, one.config, [&](Accelerator& a) { one.prepare(a, odd < 0 || a.rank() == odd); }),
                 one.text);
}

TEST_CASE("an exception of a dataset's own comes out of prepare on all ranks as itself") {
  const auto caught = on_ranks<bool>(2, [](Accelerator& a) {
    try {
      a.prepare(data::DataLoader(Shy(a.rank() == 1 ? Shy::Size::throws : Shy::Size::known)));
    } catch (const MyError&) {
      return true;
    }
    return false;
  });
  CHECK(caught == std::vector<bool>{true, true});
}

TEST_CASE("models that differ, or are empty, are the same error on all ranks, which can go on") {
  check_same(outcomes(3,
                      [](Accelerator& a) {
                        torch::nn::Linear net(4, a.rank() == 1 ? 3 : 2);
                        a.prepare(net);
                      }),
             "weight Float[3, 4] on rank 1 and weight Float[2, 4] on rank 0");
  check_same(
      outcomes(3,
               [](Accelerator& a) {
                 torch::nn::BatchNorm1d norm(torch::nn::BatchNorm1dOptions(2).track_running_stats(a.rank() != 2));
                 a.prepare(norm);
               }),
      "buffer 0 is nothing on rank 2");
  for (const int odd : {0, 1, -1})
    check_same(outcomes(2,
                        [&](Accelerator& a) {
                          torch::nn::Linear net(nullptr);
                          if (odd >= 0 && a.rank() != odd) net = torch::nn::Linear(2, 1);
                          a.prepare(net);
                        }),
               "empty module on rank " + std::to_string(std::max(odd, 0)));
  auto shared = std::make_shared<torch::nn::LinearImpl>(2, 1);
  check_same(outcomes(2, [&](Accelerator& a) { a.prepare(shared); }), "the very tensor of rank 0");
}

TEST_CASE("arguments that are out of range on one rank, or differ, are the same error on all ranks") {
  const auto nothing = [](nn::LocalSgd&) {};
  using Call = std::function<void(Accelerator&, bool odd)>;
  const std::vector<std::pair<std::string, Call>> calls{
      {"ranks are 0 to 2", [](Accelerator& a, bool odd) { a.broadcast_object(1, odd ? 3 : 0); }},
      {"ranks are 0 to 2",
       [](Accelerator& a, bool odd) {
         double x = 1;
         a.broadcast(x, odd ? -1 : 0);
       }},
      {"ranks are 0 to 2",
       [](Accelerator& a, bool odd) {
         at::Tensor x = at::ones({1});
         a.broadcast(x, odd ? 7 : 0);
       }},
      {"the mean of Long",
       [](Accelerator& a, bool odd) { a.reduce(at::ones({2}, odd ? at::kLong : at::kFloat), comm::ReduceOp::mean); }},
      {"max or min of ComplexFloat",
       [](Accelerator& a, bool odd) {
         a.reduce(at::ones({2}, odd ? at::kComplexFloat : at::kFloat), comm::ReduceOp::max);
       }},
      {"use sum, mean, max",
       [](Accelerator& a, bool odd) { a.reduce(1.0, odd ? static_cast<comm::ReduceOp>(77) : comm::ReduceOp::sum); }},
      {"local_sgd with 0 steps", [&](Accelerator& a, bool odd) { a.local_sgd(odd ? 0 : 2, nothing); }},
      {"batch size 0",
       [](Accelerator& a, bool odd) { a.find_executable_batch_size(odd ? 0 : 4, [](std::int64_t) {}); }},
      {"the first one is 1", [](Accelerator& a, bool odd) {
         const TempDir dir;
         a.profile({.directory = dir.path(), .first_step = odd ? 0 : 1}, [] {});
       }}};
  for (std::size_t i = 0; i < calls.size(); ++i)
    for (const int odd : {-1, 0, 2}) {
      CAPTURE(i, odd);
      check_same(outcomes(3, [&](Accelerator& a) { calls[i].second(a, odd < 0 || a.rank() == odd); }), calls[i].first);
    }
  check_same(outcomes(2, [&](Accelerator& a) { a.local_sgd(a.rank() + 2, nothing); }), "2 steps between averages");
  check_same(outcomes(2, [&](Accelerator& a) { a.find_executable_batch_size(8 << a.rank(), [](std::int64_t) {}); }),
             "from 8 on rank 0, but find_executable_batch_size from 16 on rank 1");
}

TEST_CASE("files that cannot be written or read are the same error on all ranks") {
  const TempDir dir;
  const std::string file = dir.path() + "/file";
  std::ofstream(file) << "no directory";
  torch::nn::Linear other(1, 1);
  using Call = std::function<void(Accelerator&, nn::Model<torch::nn::LinearImpl>&)>;
  const std::vector<std::pair<std::string, Call>> calls{
      {"file", [&](Accelerator& a, auto& model) { a.save_model(model, file + "/in"); }},
      {"file", [&](Accelerator& a, auto&) { a.save_state(file + "/in"); }},
      {"nothing-here", [&](Accelerator& a, auto&) { a.load_state(dir.path() + "/nothing-here"); }},
      {"nothing-here", [&](Accelerator& a, auto& model) { a.load_model(model, dir.path() + "/nothing-here"); }},
      {"checkpoints.directory",
       [&](Accelerator& a, auto&) { a.save_state(a.rank() == 1 ? "" : dir.path() + "/state"); }},
      {"checkpoints.directory",
       [&](Accelerator& a, auto&) { a.load_state(a.rank() == 1 ? "" : dir.path() + "/state"); }},
      {"that this accelerator has prepared",
       [&](Accelerator& a, auto& model) {
         a.rank() == 1 ? a.load_model(other, dir.path()) : a.load_model(model, dir.path());
       }},
      {"window is open", [&](Accelerator& a, auto& model) {
         if (a.rank() == 1) {
           auto window = a.accumulate(model);
           a.save_state(dir.path() + "/state");
         } else {
           a.save_state(dir.path() + "/state");
         }
       }}};
  for (std::size_t i = 0; i < calls.size(); ++i) {
    CAPTURE(i);
    const auto got = on_ranks<Outcome>(2, {.gradient_accumulation_steps = 2}, [&](Accelerator& a) {
      torch::nn::Linear net(2, 1);
      auto model = a.prepare(net);
      Outcome outcome;
      try {
        calls[i].second(a, model);
      } catch (const Cancelled&) {
        throw;
      } catch (const Error& error) {
        outcome.text = error.what();
      }
      outcome.goes_on = a.reduce(1) == 2;
      return outcome;
    });
    check_same(got, calls[i].first);
  }
}

TEST_CASE("ranks of a join that use different forms of backward get one error, also those that have ended") {
  const auto texts = on_ranks<std::string>(3, [](Accelerator& a) {
    torch::nn::Linear net(2, 1);
    auto model = a.prepare(net);
    return error_of<ConfigError>([&] {
      a.join_uneven_inputs([&] {
        const auto loss = model(torch::ones({1, 2})).sum();
        if (a.rank() == 0) a.backward(loss);
        if (a.rank() == 1) a.backward(loss, 1.0);
      });
    });
  });
  for (const auto& text : texts) CHECK_THAT(text, ContainsSubstring("different forms of backward"));
}
