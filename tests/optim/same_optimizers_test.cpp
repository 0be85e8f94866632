// What optimizers and models of several ranks have to have alike: what differs is an error, or told of.
#include <functional>
#include <memory>
#include <string>

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "optim/small_net.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;
using torch::optim::OptimizerParamGroup;

namespace {

using Parameters = std::vector<at::Tensor>;
using ParameterGroups = std::vector<OptimizerParamGroup>;

}  // namespace

TEST_CASE("optimizers that differ between ranks are an error on all of them that names both, now or later") {
  const auto error_of = [](int ranks, Sharding sharding, bool later,
                           const std::function<ParameterGroups(const std::vector<at::Tensor>&, int rank)>& groups_of) {
    return on_ranks<std::string>(ranks, {.sharding = sharding}, [&](Accelerator& accelerator) -> std::string {
      auto net = make_net();
      auto model = accelerator.prepare(net);
      const auto all = net->parameters();
      torch::optim::AdamW adamw(
          later ? ParameterGroups{OptimizerParamGroup({all[4]})} : groups_of(all, accelerator.rank()), 0.01);
      std::string text = "none";
      try {
        auto optimizer = accelerator.prepare(adamw);
        accelerator.backward(model->forward(batch_of(accelerator.rank(), 0)).pow(2).mean());
        optimizer.step();
        if (later)
          for (const auto& group : groups_of({all.begin(), all.begin() + 4}, accelerator.rank()))
            adamw.add_param_group(group);
        optimizer.step();
      } catch (const ConfigError& error) {
        text = error.what();
      }
      accelerator.wait_for_everyone();  // a body that catches it goes on
      return text;
    });
  };
  const std::vector<std::function<ParameterGroups(Parameters, int)>> ways{
      [](Parameters all, int rank) {  // one is missing
        if (rank == 1) all.pop_back();
        return ParameterGroups{OptimizerParamGroup(all)};
      },
      [](Parameters all, int rank) {  // another order
        if (rank == 1) std::swap(all[0], all[2]);
        return ParameterGroups{OptimizerParamGroup(all)};
      },
      [](Parameters all, int rank) {  // other groups
        if (rank == 0) return ParameterGroups{OptimizerParamGroup(all)};
        return ParameterGroups{OptimizerParamGroup({all.begin(), all.begin() + 1}),
                               OptimizerParamGroup({all.begin() + 1, all.end()})};
      },
      [](Parameters all, int rank) {  // one more, of no model
        if (rank == 1) all.push_back(at::zeros({3}).requires_grad_());
        return ParameterGroups{OptimizerParamGroup(all)};
      }};
  for (std::size_t way = 0; way < ways.size(); ++way)
    for (const bool later : {false, true})
      for (const Sharding sharding : {Sharding::automatic, Sharding::optimizer, Sharding::none}) {
        if (later && sharding == Sharding::none) continue;  // ranks do not meet then
        for (const int ranks : {2, 3}) {
          CAPTURE(way, later, static_cast<int>(sharding), ranks);
          const auto texts = error_of(ranks, sharding, later, ways[way]);
          for (const auto& text : texts) {
            CHECK_THAT(text, ContainsSubstring("the optimizer differs between ranks: parameter"));
            CHECK_THAT(text, ContainsSubstring("on rank 1") && ContainsSubstring("on rank 0"));
          }
        }
      }
}

TEST_CASE("the same parameters of two models in another order are told apart by their models") {
  const auto texts = on_ranks<std::string>(2, [](Accelerator& accelerator) -> std::string {
    torch::nn::Linear first(3, 3), second(3, 3);
    auto [a, b] = accelerator.prepare(first, second);
    const bool other = accelerator.rank() == 1;
    const std::vector<at::Tensor> weights{other ? second->weight : first->weight,
                                          other ? first->weight : second->weight};
    torch::optim::SGD sgd(weights, 0.1);
    try {
      accelerator.prepare(sgd);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "none";
  });
  CHECK_THAT(texts[0], ContainsSubstring("weight of model 2") && ContainsSubstring("weight of model 1"));
  CHECK(texts[0] == texts[1]);
}

TEST_CASE("an optimizer of parameters that no prepared model has is told of") {
  const bool all = GENERATE(true, false);
  for (const Sharding sharding : {Sharding::automatic, Sharding::none}) {
    std::vector<std::string> warnings;
    const auto warn = [&](const std::string& text) { warnings.push_back(text); };
    run_ranks(2, {.sharding = sharding, .on_warning = warn}, [&](Accelerator& accelerator) {
      torch::nn::Linear net(6, 2);
      at::Tensor temperature = at::ones({1}).requires_grad_();
      torch::optim::SGD sgd(net->parameters(), 0.1);
      if (!all) {
        sgd.add_param_group(OptimizerParamGroup({temperature}));
        accelerator.prepare(net);
      }
      auto optimizer = accelerator.prepare(sgd);
      for (int step = 0; step < 3; ++step) {
        accelerator.backward((net(batch_of(accelerator.rank(), step)) * temperature).square().mean());
        optimizer.step();
      }
    });
    REQUIRE(warnings.size() == 1);
    CHECK_THAT(warnings[0], ContainsSubstring("is of no prepared model") &&
                                ContainsSubstring(all ? "parameter 0 of an optimizer" : "parameter 2 of an optimizer"));
  }
}

TEST_CASE("weights that each rank makes anew after prepare are told of once, whoever updates them") {
  struct Own : torch::optim::SGD {
    using SGD::SGD;
  };
  using Make = std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<at::Tensor>)>;
  const std::vector<Make> optimizers{
      [](auto parameters) { return std::make_unique<torch::optim::SGD>(parameters, 0.1); },
      [](auto parameters) { return std::make_unique<Own>(parameters, torch::optim::SGDOptions(0.1)); }};
  const auto sharding = GENERATE(Sharding::automatic, Sharding::optimizer, Sharding::none);
  const bool alike = GENERATE(true, false), by_hand = GENERATE(true, false);
  for (const Make& make : optimizers) {
    std::vector<std::string> warnings;
    run_ranks(3, {.sharding = sharding, .on_warning = [&](const std::string& text) { warnings.push_back(text); }},
              [&](Accelerator& accelerator) {
                torch::nn::Linear net(6, 2);
                const auto inner = make(net->parameters());
                auto [model, optimizer] = accelerator.prepare(net, *inner);
                torch::manual_seed(alike ? 3 : 3 + accelerator.rank() / 2);
                net->reset_parameters();
                for (int step = 0; step < 3; ++step) {
                  accelerator.backward(model(batch_of(accelerator.rank(), step)).square().mean());
                  if (by_hand)
                    inner->step();
                  else
                    optimizer.step();
                }
              });
    CAPTURE(static_cast<int>(sharding), alike, by_hand);
    REQUIRE(warnings.size() == (alike ? 0 : 1));
    if (!alike)
      CHECK_THAT(warnings[0], ContainsSubstring("parameter weight has other values on rank 2 than on rank 0"));
  }
}
