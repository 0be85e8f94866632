// Optimizers of a program's own, and LibTorch's, whose training goes on from a checkpoint.
#include <algorithm>
#include <mutex>

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/serialize.h>
#include <torch/optim/sgd.h>

#include "checkpoint/own_optimizers.h"
#include "checkpoint/state_training.h"
#include "optim/state_dict.h"
#include "support/error_of.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::test::own;
using namespace tandem::test::states;

namespace {

// ---- a training

constexpr int kSteps = 7;

struct Plan {
  int ranks = 1;
  bool as_base = false;  // prepared as a torch::optim::Optimizer
  bool background = false;
};

template <class Make>
at::Tensor train_with(const Plan& plan, const Make& make, int first, int last, const std::string& load_from,
                      const std::string& save_to, std::vector<std::string>* warnings = nullptr) {
  LaunchConfig config;
  std::mutex mutex;
  config.on_warning = [&](const std::string& text) {
    const std::scoped_lock lock(mutex);
    if (warnings) warnings->push_back(text);
  };
  return on_ranks<at::Tensor>(plan.ranks, config, [&](Accelerator& accelerator) {
    torch::nn::Linear net(3, 2);
    {
      const torch::NoGradGuard no_grad;
      net->weight.copy_(at::arange(6).view({2, 3}).mul(0.1));
      net->bias.fill_(0.5);
    }
    auto inner = make(net->parameters());
    auto model = accelerator.prepare(net);
    auto optimizer = plan.as_base ? accelerator.prepare(static_cast<Optimizer&>(*inner)) : accelerator.prepare(*inner);
    if (!load_from.empty()) accelerator.load_state(load_from);
    for (int step = first; step < last; ++step) {
      const at::Tensor input = at::sin(at::arange(3, at::kFloat) + (step + accelerator.rank())).view({1, 3});
      accelerator.backward(model(input).square().sum());
      optimizer.step();
      optimizer.zero_grad();
    }
    if (!save_to.empty()) accelerator.save_state(save_to, {.background = plan.background});
    return at::cat({net->weight.detach().flatten(), net->bias.detach()}).clone();
  })[0];
}

template <class Make>
void check_goes_on(const Plan& plan, const Make& make, int saved_after = 3) {
  CAPTURE(plan.ranks, plan.as_base, plan.background, saved_after);
  const TempDir dir;
  const at::Tensor whole = train_with(plan, make, 0, kSteps, "", "");
  train_with(plan, make, 0, saved_after, "", dir / "state");
  const at::Tensor resumed = train_with(plan, make, saved_after, kSteps, dir / "state", "");
  CAPTURE(whole, resumed);
  CHECK(at::equal(whole, resumed));
}

template <class Own>
struct Makes {
  auto operator()(Parameters parameters) const { return std::make_unique<Own>(std::move(parameters)); }
};

template <class Make>
void check_everywhere(const Make& make) {
  for (const int ranks : {1, 2})
    for (const bool as_base : {false, true}) check_goes_on({.ranks = ranks, .as_base = as_base}, make);
  check_goes_on({.ranks = 2, .background = true}, make);
  for (const int saved_after : {0, 1}) check_goes_on({}, make, saved_after);
}

template <class Own>
std::string error_of_saving(bool as_base = false) {
  const TempDir dir;
  const auto errors = on_ranks<std::string>(2, [&](Accelerator& accelerator) {
    torch::nn::Linear net(3, 2);
    Own inner(net->parameters());
    auto model = accelerator.prepare(net);
    auto optimizer = as_base ? accelerator.prepare(static_cast<Optimizer&>(inner)) : accelerator.prepare(inner);
    accelerator.backward(model(at::ones({1, 3})).sum());
    optimizer.step();
    return error_of<ConfigError>([&] { accelerator.save_state(dir / "state"); });
  });
  CHECK(errors[0] == errors[1]);
  return errors[0];
}

}  // namespace

TEST_CASE("an optimizer of the program's own goes on to the bit: states in state()") {
  check_everywhere(Makes<WithState>());
  check_everywhere(Makes<WithFirstState>());
  check_everywhere(Makes<WithAdamState>());
  check_everywhere(Makes<WithMoreState>());
}

TEST_CASE("an optimizer of the program's own goes on to the bit: members that it saves, with and without state()") {
  check_everywhere(Makes<WithSavedMembers>());
  check_everywhere(Makes<WithBoth>());
  check_everywhere(Makes<LibTorchsWay>());
  check_everywhere(Makes<WithStatesThatItSaves>());
  for (const int ranks : {1, 2}) {
    check_goes_on({.ranks = ranks}, Makes<WithConstants>());
    check_goes_on({.ranks = ranks}, Makes<WithReference>());
  }
}

TEST_CASE("an optimizer of the program's own goes on to the bit: none, derived from LibTorch's, options of its own") {
  for (const int ranks : {1, 2}) check_goes_on({.ranks = ranks}, Makes<Stateless>());
  check_everywhere(Makes<Plain>());
  check_everywhere(Makes<Derived>());
  for (const int ranks : {1, 2}) check_goes_on({.ranks = ranks}, Makes<WithOptions>());
  for (const int ranks : {1, 2}) check_goes_on({.ranks = ranks}, Makes<WithUnsavedOptions>());
}

TEST_CASE("LibTorch's optimizers go on to the bit") {
  namespace t = torch::optim;
  const auto with = [](auto options, auto its) {
    return [options, its](Parameters parameters) {
      return std::make_unique<typename decltype(its)::type>(std::move(parameters), options);
    };
  };
  check_everywhere(with(t::SGDOptions(0.1).momentum(0.9).nesterov(true), std::type_identity<t::SGD>()));
  check_everywhere(with(t::SGDOptions(0.1).momentum(0.9), std::type_identity<Sgd>()));
  check_everywhere(with(t::AdamOptions(0.1).amsgrad(true), std::type_identity<t::Adam>()));
  check_everywhere(with(t::AdamWOptions(0.1), std::type_identity<t::AdamW>()));
  check_everywhere(with(t::RMSpropOptions(0.1).momentum(0.5).centered(true), std::type_identity<t::RMSprop>()));
  check_everywhere(with(t::AdagradOptions(0.1).lr_decay(0.1), std::type_identity<t::Adagrad>()));
}

TEST_CASE(
    "what an optimizer of the program's own keeps and nothing saves is an error of save_state that says what to "
    "write") {
  struct Members : WithSavedMembers {
    using WithSavedMembers::WithSavedMembers;
    at::Tensor step(LossClosure closure = nullptr) override {
      more += 1;
      return WithSavedMembers::step(std::move(closure));
    }
    double more = 0;  // since the class that saves
  };
  struct Alone : Stateless {  // written to where it is: its own bytes stay the same
    explicit Alone(Parameters all) : Stateless(std::move(all)), velocity(at::zeros({6})) {}
    at::Tensor velocity;
  };
  struct Beside : WithState {
    using WithState::WithState;
    at::Tensor step(LossClosure closure = nullptr) override {
      count += 1;
      return WithState::step(std::move(closure));
    }
    std::int64_t count = 0;
  };
  struct OfAdam : Plain {
    using Plain::Plain;
    at::Tensor step(LossClosure closure = nullptr) override {
      factor *= 0.5F;
      return Plain::step(std::move(closure));
    }
    float factor = 1;
  };
  struct OfLbfgs : torch::optim::LBFGS {
    using LBFGS::LBFGS;
    std::shared_ptr<double> factor = std::make_shared<double>(1.0);
  };
  struct OnlySaves : Stateless {
    using Stateless::Stateless;
    at::Tensor step(LossClosure closure = nullptr) override {
      count += 1;
      return Stateless::step(std::move(closure));
    }
    void save(OutputArchive& archive) const override { archive.write("count", c10::IValue(count)); }
    std::int64_t count = 0;
  };
  const auto says = ContainsSubstring("define save(torch::serialize::OutputArchive&) const and load(");
  CHECK_THAT(error_of_saving<Members>(), says && ContainsSubstring("Members") && ContainsSubstring("8 bytes"));
  CHECK_THAT(error_of_saving<Alone>(), says && ContainsSubstring("Alone"));
  CHECK_THAT(error_of_saving<Beside>(), says && ContainsSubstring("Beside"));
  CHECK_THAT(error_of_saving<OfAdam>(), says && ContainsSubstring("OfAdam"));
  CHECK_THAT(error_of_saving<OnlySaves>(), says && ContainsSubstring("OnlySaves"));
  CHECK_THAT(error_of_saving<Alone>(true), says && ContainsSubstring("was prepared as a torch::optim::Optimizer"));
  const OfLbfgs lbfgs({at::zeros({2}).requires_grad_()});
  CHECK_THAT(error_of<ConfigError>([&] { optim::state_dict(lbfgs, {}, {.its_class = optim::optimizer_class(lbfgs)}); }),
             says);
}

TEST_CASE("states that cannot be saved or loaded are an error of save_state that names them") {
  struct Silent : torch::optim::OptimizerCloneableParamState<Silent> {
    at::Tensor more;
  };
  struct OnlyOut : torch::optim::OptimizerCloneableParamState<OnlyOut> {
    at::Tensor more;
    void serialize(InputArchive& archive) override { OptimizerParamState::serialize(archive); }
    void serialize(OutputArchive& archive) const override { archive.write("more", more); }
  };
  struct NoMore : torch::optim::AdamParamState {
    at::Tensor more;
  };
  struct Elsewhere : WithState {
    using WithState::WithState;
    at::Tensor step(LossClosure closure = nullptr) override {
      if (!state()[nullptr]) state()[nullptr] = std::make_unique<Velocity>();
      return WithState::step(std::move(closure));
    }
  };
  CHECK_THAT(error_of_saving<WithMoreStateOf<Silent>>(),
             ContainsSubstring("Silent") && ContainsSubstring("define both serialize("));
  CHECK_THAT(error_of_saving<WithMoreStateOf<OnlyOut>>(),
             ContainsSubstring("OnlyOut") && ContainsSubstring("define serialize(torch::serialize::InputArchive&)"));
  CHECK_THAT(error_of_saving<WithMoreStateOf<NoMore>>(),
             ContainsSubstring("NoMore") && ContainsSubstring("writes no more than the AdamParamState"));
  CHECK_THAT(error_of_saving<Elsewhere>(), ContainsSubstring("entries that belong to no parameter"));
}

TEST_CASE("what is not saved and need not matter is told once") {
  const TempDir dir;
  std::vector<std::string> warnings;
  train_with({.ranks = 2}, Makes<WithUnsavedOptions>(), 0, 2, "", dir / "a", &warnings);
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("UnsavedOptions") && ContainsSubstring("but for the learning rate"));
  warnings.clear();
  train_with({.ranks = 2, .as_base = true}, Makes<WithState>(), 0, 2, "", dir / "b", &warnings);
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("members of its own cannot be seen"));
  warnings.clear();
  train_with({.ranks = 2, .as_base = true}, Makes<Plain>(), 0, 2, "", dir / "e", &warnings);
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("members of its own cannot be seen"));
  warnings.clear();
  train_with({.ranks = 2}, Makes<WithStatesThatItSaves>(), 0, 2, "", dir / "f", &warnings);
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("Bare") && ContainsSubstring("does not write of such states"));
  warnings.clear();
  train_with({.ranks = 2, .as_base = true}, Makes<WithSavedMembers>(), 0, 2, "", dir / "c", &warnings);
  train_with({.ranks = 2}, Makes<WithState>(), 0, 2, "", dir / "d", &warnings);
  CHECK(warnings.empty());
}

TEST_CASE("states of LBFGS, of which the first parameter's is that of all, go on to the bit") {
  const auto run = [](const at::Tensor& parameter, torch::optim::LBFGS& lbfgs, int steps) {
    for (int i = 0; i < steps; ++i)
      lbfgs.step([&] {
        lbfgs.zero_grad();
        auto loss = (parameter - at::arange(4)).pow(4).sum();
        loss.backward();
        return loss;
      });
  };
  const auto options = torch::optim::LBFGSOptions(0.5).max_iter(2).history_size(3);
  const at::Tensor whole = at::zeros({4}).requires_grad_(), begun = at::zeros({4}).requires_grad_();
  torch::optim::LBFGS first({whole}, options), second({begun}, options);
  run(whole, first, 6);
  run(begun, second, 3);
  const at::Tensor rest = begun.detach().clone().requires_grad_();
  torch::optim::LBFGS third({rest}, torch::optim::LBFGSOptions(0.1));
  optim::prepare_load(third, optim::state_dict(second))();
  run(rest, third, 3);
  CHECK(at::equal(rest, whole));
}

TEST_CASE("a checkpoint of an older version, with what save() writes alone, is loaded") {
  const TempDir dir;
  const at::Tensor weights = at::zeros({4}).requires_grad_(), others = at::zeros({4}).requires_grad_();
  Derived saved({weights}), loaded({others});
  weights.mutable_grad() = at::ones({4});
  others.mutable_grad() = at::ones({4});
  saved.step();
  OutputArchive archive;
  saved.save(archive);
  std::ostringstream stream;
  archive.save_to(stream);
  const std::string bytes = stream.str();
  c10::impl::GenericDict older(c10::AnyType::get(), c10::AnyType::get());
  older.insert(
      "libtorch_archive",
      at::from_blob(const_cast<char*>(bytes.data()), static_cast<std::int64_t>(bytes.size()), at::kByte).clone());
  optim::prepare_load(loaded, older)();
  CHECK(loaded.factor == saved.factor);
  CHECK(loaded.state().size() == 1);
}

TEST_CASE("a join gives all ranks the state of an optimizer of the program's own") {
  const auto velocities = on_ranks<at::Tensor>(2, [](Accelerator& accelerator) {
    torch::nn::Linear net(2, 1);
    WithState inner(net->parameters());
    auto [model, optimizer] = accelerator.prepare(net, inner);
    accelerator.join_uneven_inputs([&, &model = model, &optimizer = optimizer] {
      for (int i = 0; i < 1 + 2 * accelerator.rank(); ++i) {
        accelerator.backward(model(at::ones({1, 2})).sum());
        optimizer.step();
        optimizer.zero_grad();
      }
    });
    return state_of<Velocity>(inner, net->weight).velocity.clone();
  });
  CHECK(at::equal(velocities[0], velocities[1]));
}
