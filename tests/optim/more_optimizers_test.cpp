// Lion, Muon and Adafactor: beside PyTorch (data/optimizers.json), divided over ranks, and in checkpoints.
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <nlohmann/json.hpp>

#include "support/error_of.h"
#include "support/ranks.h"
#include "support/temp_dir.h"
#include "tandem/optim/adafactor.h"
#include "tandem/optim/lion.h"
#include "tandem/optim/muon.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Tensors = std::vector<at::Tensor>;
using MakeOptimizer = std::function<std::unique_ptr<torch::optim::Optimizer>(Tensors)>;

template <class Optimizer, class Options>
MakeOptimizer updated_by(const Options& options) {
  return [options](Tensors parameters) { return std::make_unique<Optimizer>(std::move(parameters), options); };
}

struct Recorded {
  const char* name;
  MakeOptimizer make;
};

const Recorded kRecorded[] = {
    {"lion", updated_by<optim::Lion>(optim::LionOptions(0.01))},
    {"lion decay", updated_by<optim::Lion>(optim::LionOptions(0.003).betas({0.8, 0.95}).weight_decay(0.3))},
    {"muon", updated_by<optim::Muon>(optim::MuonOptions(0.02))},
    {"muon rms",
     updated_by<optim::Muon>(optim::MuonOptions(0.01).weight_decay(0.2).momentum(0.9).nesterov(false).adjust_lr_fn(
         optim::MuonRate::match_rms_adamw))},
    {"muon others", updated_by<optim::Muon>(optim::MuonOptions(0.02).adamw_betas({0.8, 0.99}).adamw_eps(1e-6))},
    {"adafactor", updated_by<optim::Adafactor>(optim::AdafactorOptions())},
    {"adafactor all", updated_by<optim::Adafactor>(
                          optim::AdafactorOptions(0.05).beta2_decay(-0.7).eps({1e-4, 1e-2}).d(1.5).weight_decay(0.1))}};

at::Tensor numbers_of(at::IntArrayRef shape, int seed) {
  const std::int64_t count = c10::multiply_integers(shape);
  const at::Tensor x = at::arange(count, at::kDouble);
  return (x * x * 0.37 + x * 1.3 + seed * 0.7).sin().reshape(shape);
}

const nlohmann::json& recorded_cases() {
  static const nlohmann::json all = [] {
    const char* const root = std::getenv("TANDEM_SOURCE_DIR");
    std::ifstream file(std::string(root ? root : ".") + "/tests/optim/data/optimizers.json");
    return nlohmann::json::parse(file).at("cases");
  }();
  return all;
}

bool is_near(const at::Tensor& actual, const nlohmann::json& wanted, double tolerance) {
  const auto values = wanted.get<std::vector<double>>();
  return at::allclose(actual.detach().flatten().to(at::kDouble), at::tensor(values, at::kDouble), tolerance, tolerance);
}

// What a state says under PyTorch's names.
Tensors tensors_of(torch::optim::OptimizerParamState& any) {
  Tensors all;
  if (auto* lion = dynamic_cast<optim::LionParamState*>(&any)) all = {lion->exp_avg()};
  if (auto* muon = dynamic_cast<optim::MuonParamState*>(&any))
    all = {muon->momentum_buffer(), muon->exp_avg(), muon->exp_avg_sq()};
  if (auto* factors = dynamic_cast<optim::AdafactorParamState*>(&any))
    all = {factors->row_var(), factors->col_var(), factors->variance()};
  std::erase_if(all, [](const at::Tensor& tensor) { return !tensor.defined(); });
  return all;
}

const MakeOptimizer kMakers[] = {
    updated_by<optim::Lion>(optim::LionOptions(0.003).weight_decay(0.1)),
    updated_by<optim::Muon>(optim::MuonOptions(0.01).adjust_lr_fn(optim::MuonRate::match_rms_adamw)),
    updated_by<optim::Adafactor>(optim::AdafactorOptions(0.03))};

struct Updates {
  MakeOptimizer make;
  int first = 0, last = 6;  // updates
  std::string save_to{}, load_from{};
};

// The weights and states after the updates, on one rank.
Tensors train(Accelerator& a, const Updates& training) {
  torch::nn::Sequential net(torch::nn::Linear(6, 9), torch::nn::Tanh(), torch::nn::Linear(9, 4));
  const auto inner = training.make(net->parameters());
  auto [model, optimizer] = a.prepare(net, *inner);
  {
    const at::NoGradGuard no_grad;
    int seed = 0;
    for (at::Tensor& parameter : net->parameters()) parameter.copy_(numbers_of(parameter.sizes(), ++seed));
  }
  if (!training.load_from.empty()) a.load_state(training.load_from);
  for (int step = training.first; step < training.last; ++step) {
    a.backward(net->forward(numbers_of({4, 6}, 10 * step + a.rank()).to(at::kFloat)).pow(2).mean());
    optimizer.step();
    optimizer.zero_grad();
  }
  if (!training.save_to.empty()) a.save_state(training.save_to);
  Tensors all;
  for (const at::Tensor& parameter : net->parameters()) {
    all.push_back(parameter.detach().clone());
    for (const at::Tensor& tensor : tensors_of(*inner->state().at(parameter.unsafeGetTensorImpl())))
      all.push_back(tensor.clone());
  }
  return all;
}

bool same(const Tensors& a, const Tensors& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const at::Tensor& one, const at::Tensor& other) { return at::equal(one, other); });
}

}  // namespace

TEST_CASE("Lion, Muon and Adafactor make the updates and states of their references") {
  for (const Recorded& one : kRecorded)
    for (const bool is_double : {false, true}) {
      const std::string name = std::string(one.name) + (is_double ? " double" : " float");
      const auto& wanted = recorded_cases().at(name);
      Tensors parameters;
      for (const auto& shape : wanted.at("shapes"))
        parameters.push_back(
            numbers_of(shape.get<std::vector<std::int64_t>>(), 50 + static_cast<int>(parameters.size()))
                .to(is_double ? at::kDouble : at::kFloat)
                .requires_grad_());
      const auto optimizer = one.make(parameters);
      for (int step = 0; step < 50; ++step) {
        for (std::size_t i = 0; i < parameters.size(); ++i)
          parameters[i].mutable_grad() =
              (numbers_of(parameters[i].sizes(), 3 * step + static_cast<int>(i)) * static_cast<double>(1 + i))
                  .to(parameters[i].scalar_type());
        optimizer->step();
        if (!wanted.at("after").contains(std::to_string(step + 1))) continue;
        for (std::size_t i = 0; i < parameters.size(); ++i) {
          INFO(name << ", parameter " << i << " after update " << step + 1);
          const auto& its = wanted.at("after").at(std::to_string(step + 1))[i];
          const double tolerance = is_double ? 1e-10 : 1e-5;
          CHECK(is_near(parameters[i], its.at("weights"), tolerance));
          const Tensors state = tensors_of(*optimizer->state().at(parameters[i].unsafeGetTensorImpl()));
          CHECK(state.size() == its.at("state").size());
          for (const auto& [field, values] : its.at("state").items())
            CHECK(std::any_of(state.begin(), state.end(), [&](const at::Tensor& tensor) {
              return static_cast<std::size_t>(tensor.numel()) == values.size() && is_near(tensor, values, tolerance);
            }));
        }
      }
    }
}

TEST_CASE("Lion without its one pass makes the same updates") {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    Tensors dense{numbers_of({6, 4}, 1).to(type)}, strided{at::empty({4, 6}, type).t()};
    strided[0].copy_(dense[0]);
    const optim::LionOptions options = optim::LionOptions(0.01).weight_decay(0.1);
    optim::Lion one(dense, options), other(strided, options);
    for (int step = 0; step < 20; ++step) {
      const at::Tensor gradient = numbers_of({6, 4}, step).to(type);
      dense[0].mutable_grad() = gradient;
      strided[0].mutable_grad() = gradient;  // in another order of memory
      one.step();
      other.step();
    }
    CHECK(at::allclose(dense[0], strided[0], 1e-5, 1e-6));
  }
}

TEST_CASE("Lion, Muon and Adafactor divided over ranks make the bits of whole updates") {
  for (const MakeOptimizer& make : kMakers)
    for (int ranks : {2, 3}) {
      const auto run = [&](Sharding sharding) {
        return on_ranks<Tensors>(ranks, {.sharding = sharding},
                                 [&](Accelerator& a) { return train(a, {.make = make}); });
      };
      const auto whole = run(Sharding::none), divided = run(Sharding::optimizer), automatic = run(Sharding::automatic);
      for (std::size_t rank = 0; rank < whole.size(); ++rank) {
        CHECK(whole[rank].size() >= 8);
        CHECK(same(whole[rank], whole[0]));
        CHECK(same(divided[rank], whole[0]));
        CHECK(same(automatic[rank], whole[0]));
      }
    }
}

TEST_CASE("Lion, Muon and Adafactor go on from a checkpoint to the bit") {
  for (const MakeOptimizer& make : kMakers) {
    const TempDir folder;
    const std::string saved = folder / "state";
    const auto run = [&](const Updates& training) {
      return on_ranks<Tensors>(2, [&](Accelerator& a) { return train(a, training); })[1];
    };
    const Tensors straight = run({.make = make});
    run({.make = make, .last = 3, .save_to = saved});
    CHECK(same(run({.make = make, .first = 3, .load_from = saved}), straight));
  }
}

TEST_CASE("Lion, Muon and Adafactor go through LibTorch's archives, and evaluate closures") {
  for (const MakeOptimizer& make : kMakers) {
    Tensors first{numbers_of({3, 4}, 1).requires_grad_(), numbers_of({5}, 2).requires_grad_()}, second;
    for (const at::Tensor& one : first) second.push_back(one.detach().clone().requires_grad_());
    const auto a = make(first), b = make(second);
    const auto step = [](torch::optim::Optimizer& optimizer, const Tensors& parameters, int number) {
      return optimizer.step([&] {
        optimizer.zero_grad();
        at::Tensor loss = at::zeros({}, at::kDouble);
        for (const at::Tensor& one : parameters) loss = loss + (one - number).pow(2).sum();
        loss.backward();
        return loss;
      });
    };
    CHECK(step(*a, first, 1).item<double>() > 0);
    std::stringstream file;
    torch::serialize::OutputArchive out;
    a->save(out);
    out.save_to(file);
    torch::serialize::InputArchive in;
    in.load_from(file);
    b->load(in);
    for (std::size_t i = 0; i < first.size(); ++i) second[i].data().copy_(first[i].data());
    step(*a, first, 2);
    step(*b, second, 2);
    CHECK(same(first, second));
  }
}

TEST_CASE("options of Lion, Muon and Adafactor that are out of range are refused by name") {
  const Tensors one{at::zeros({2, 2})};
  const auto refused = [&](auto make) { return error_of<ConfigError>(make); };
  CHECK_THAT(refused([&] { optim::Lion(one, optim::LionOptions(-1)); }), ContainsSubstring("lr -1 is out of range"));
  CHECK_THAT(refused([&] { optim::Lion(one, optim::LionOptions().betas({1, 0.9})); }), ContainsSubstring("betas 1"));
  CHECK_THAT(refused([&] {
               optim::Lion(one, optim::LionOptions().betas({0.9, -0.1}));
             }),
             ContainsSubstring("betas -0.1"));
  CHECK_THAT(refused([&] { optim::Lion(one, optim::LionOptions().weight_decay(-1)); }),
             ContainsSubstring("weight_decay"));
  CHECK_THAT(refused([&] { optim::Muon(one, optim::MuonOptions(-1)); }), ContainsSubstring("lr"));
  CHECK_THAT(refused([&] { optim::Muon(one, optim::MuonOptions().momentum(2)); }), ContainsSubstring("momentum"));
  CHECK_THAT(refused([&] { optim::Muon(one, optim::MuonOptions().eps(0)); }), ContainsSubstring("eps"));
  CHECK_THAT(refused([&] {
               optim::Muon(one, optim::MuonOptions().adamw_betas({0.9, 1}));
             }),
             ContainsSubstring("betas"));
  CHECK_THAT(refused([&] { optim::Adafactor(one, optim::AdafactorOptions().d(0.5)); }), ContainsSubstring("d 0.5"));
  CHECK_THAT(refused([&] { optim::Adafactor(one, optim::AdafactorOptions().beta2_decay(0.1)); }),
             ContainsSubstring("beta2_decay"));
  CHECK_THAT(refused([&] { optim::Adafactor(one, optim::AdafactorOptions().eps({-1, 0})); }), ContainsSubstring("eps"));
  for (const MakeOptimizer& make : kMakers) {
    Tensors rows{at::zeros({4, 2}).requires_grad_()};
    rows[0].mutable_grad() = at::ones({4, 2}).to_sparse();
    const auto optimizer = make(rows);
    CHECK_THAT(error_of<ConfigError>([&] { optimizer->step(); }), ContainsSubstring("sparse gradients"));
  }
}
