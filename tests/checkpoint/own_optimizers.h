// Optimizers as programs write them, by where they keep what they know.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <torch/optim/adam.h>
#include <torch/optim/serialize.h>
#include <torch/optim/sgd.h>
#include <torch/serialize/archive.h>

namespace tandem::test::own {

using torch::optim::Optimizer;
using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;
using Parameters = std::vector<at::Tensor>;

inline std::unique_ptr<torch::optim::SGDOptions> rate(double lr = 0.1) {
  return std::make_unique<torch::optim::SGDOptions>(lr);
}

// What all of them do: calls `update(parameter, gradient, lr)`.
template <class Update>
at::Tensor for_each(Optimizer& optimizer, const Update& update) {
  const torch::NoGradGuard no_grad;
  for (auto& group : optimizer.param_groups())
    for (at::Tensor& parameter : group.params())
      if (parameter.grad().defined()) update(parameter, parameter.grad(), group.options().get_lr());
  return {};
}

// ---- with state()

struct Velocity : torch::optim::OptimizerCloneableParamState<Velocity> {
  at::Tensor velocity;
  std::int64_t count = 0;
  void serialize(InputArchive& archive) override {
    c10::IValue value;
    archive.read("velocity", velocity, true);
    archive.read("count", value);
    count = value.toInt();
  }
  void serialize(OutputArchive& archive) const override {
    archive.write("velocity", velocity, true);
    archive.write("count", c10::IValue(count));
  }
};

template <class State>
State& state_of(Optimizer& optimizer, const at::Tensor& parameter) {
  auto& state = optimizer.state()[parameter.unsafeGetTensorImpl()];
  if (!state) state = std::make_unique<State>();
  return static_cast<State&>(*state);
}

inline void follow(Velocity& state, at::Tensor& parameter, const at::Tensor& gradient, double lr) {
  if (!state.velocity.defined()) state.velocity = at::zeros_like(parameter);
  state.count += 1;
  state.velocity.mul_(0.9).add_(gradient);
  parameter.sub_(state.velocity, lr / static_cast<double>(state.count));
}

struct WithState : Optimizer {
  explicit WithState(Parameters parameters) : Optimizer(std::move(parameters), rate()) {}
  at::Tensor step(LossClosure = nullptr) override {
    return for_each(*this, [&](auto& parameter, const auto& gradient, double lr) {
      follow(state_of<Velocity>(*this, parameter), parameter, gradient, lr);
    });
  }
};

// Makes its states before the first step.
struct WithFirstState : WithState {
  explicit WithFirstState(Parameters all) : WithState(std::move(all)) {
    for (const auto& parameter : parameters())
      state_of<Velocity>(*this, parameter).velocity = at::ones_like(parameter.detach());
  }
};

// A state of LibTorch's.
struct WithAdamState : Optimizer {
  explicit WithAdamState(Parameters parameters) : Optimizer(std::move(parameters), rate()) {}
  at::Tensor step(LossClosure = nullptr) override {
    return for_each(*this, [&](auto& parameter, const auto& gradient, double lr) {
      auto& state = state_of<torch::optim::AdamParamState>(*this, parameter);
      if (!state.exp_avg().defined()) state.exp_avg(at::zeros_like(parameter));
      state.step(state.step() + 1);
      state.exp_avg().mul_(0.5).add_(gradient);
      parameter.sub_(state.exp_avg().sign(), lr / static_cast<double>(state.step()));
    });
  }
};

// Adds to a state of LibTorch's.
struct MoreState : torch::optim::AdamParamState {
  at::Tensor more;
  std::unique_ptr<torch::optim::OptimizerParamState> clone() const override {
    return std::make_unique<MoreState>(*this);
  }
  void serialize(InputArchive& archive) override {
    AdamParamState::serialize(archive);
    archive.read("more", more, true);
  }
  void serialize(OutputArchive& archive) const override {
    AdamParamState::serialize(archive);
    archive.write("more", more, true);
  }
};

template <class State>
struct WithMoreStateOf : Optimizer {
  explicit WithMoreStateOf(Parameters parameters) : Optimizer(std::move(parameters), rate()) {}
  at::Tensor step(LossClosure = nullptr) override {
    return for_each(*this, [&](auto& parameter, const auto& gradient, double lr) {
      auto& state = state_of<State>(*this, parameter);
      if (!state.more.defined()) state.more = at::zeros_like(parameter);
      state.more.mul_(0.9).add_(gradient);
      parameter.sub_(state.more, lr);
    });
  }
};
using WithMoreState = WithMoreStateOf<MoreState>;

// ---- with members

struct WithSavedMembers : Optimizer {
  explicit WithSavedMembers(Parameters all) : Optimizer(std::move(all), rate()) {
    for (const auto& parameter : parameters()) velocities.push_back(at::zeros_like(parameter.detach()));
  }
  at::Tensor step(LossClosure = nullptr) override {
    const torch::NoGradGuard no_grad;
    count += 1;
    for (std::size_t i = 0; i < parameters().size(); ++i) {
      if (!parameters()[i].grad().defined()) continue;
      velocities[i].mul_(0.9).add_(parameters()[i].grad());
      parameters()[i].sub_(velocities[i], param_groups()[0].options().get_lr() / static_cast<double>(count));
    }
    return {};
  }
  void save(OutputArchive& archive) const override {
    archive.write("count", c10::IValue(count));
    torch::optim::serialize(archive, "velocities", velocities);
  }
  void load(InputArchive& archive) override {
    c10::IValue value;
    archive.read("count", value);
    count = value.toInt();
    torch::optim::serialize(archive, "velocities", velocities);
  }
  std::int64_t count = 0;
  std::vector<at::Tensor> velocities;
};

// State in state(), and a member that it saves itself.
struct WithBoth : WithState {
  using WithState::WithState;
  at::Tensor step(LossClosure closure = nullptr) override {
    factor *= 0.8;
    for_each(*this, [&](auto& parameter, const auto&, double lr) { parameter.mul_(1 - lr * factor); });
    return WithState::step(std::move(closure));
  }
  void save(OutputArchive& archive) const override { archive.write("factor", c10::IValue(factor)); }
  void load(InputArchive& archive) override {
    c10::IValue value;
    archive.read("factor", value);
    factor = value.toDouble();
  }
  double factor = 1;
};

// As LibTorch's classes do it: states and options too.
struct LibTorchsWay : WithAdamState {
  using WithAdamState::WithAdamState;
  void save(OutputArchive& archive) const override { serialize(*this, archive); }
  void load(InputArchive& archive) override { serialize(*this, archive); }
  template <typename Self, typename Archive>
  static void serialize(Self& self, Archive& archive) {
    torch::optim::serialize<torch::optim::AdamParamState, torch::optim::SGDOptions>(archive, self);
  }
};

// Members that the constructor alone decides.
struct WithConstants : WithState {
  using WithState::WithState;
  at::Tensor step(LossClosure closure = nullptr) override {
    for_each(*this, [&](auto& parameter, const auto&, double) { parameter.mul_(decay); });
    return WithState::step(std::move(closure));
  }
  double decay = 0.99;
  float more = 3;
  int steps = 7;
  bool flag = true;
};

// One that could not be told from state, and that says so.
struct WithReference : WithConstants {
  using WithConstants::WithConstants;
  void save(OutputArchive&) const override {}
  void load(InputArchive&) override {}
  std::string name = "a name that needs memory of its own";
};

// Writes its states itself, whose class has no serialize().
struct Bare : torch::optim::OptimizerCloneableParamState<Bare> {
  at::Tensor more;
};
struct WithStatesThatItSaves : Optimizer {
  explicit WithStatesThatItSaves(Parameters parameters) : Optimizer(std::move(parameters), rate()) {}
  at::Tensor step(LossClosure = nullptr) override {
    return for_each(*this, [&](auto& parameter, const auto& gradient, double lr) {
      auto& state = state_of<Bare>(*this, parameter);
      if (!state.more.defined()) state.more = at::zeros_like(parameter);
      parameter.sub_(state.more.mul_(0.9).add_(gradient), lr);
    });
  }
  void save(OutputArchive& archive) const override {
    for (std::size_t i = 0; i < parameters().size(); ++i) {
      const auto found = state().find(parameters()[i].unsafeGetTensorImpl());
      if (found != state().end())
        archive.write("more" + std::to_string(i), static_cast<const Bare&>(*found->second).more, true);
    }
  }
  void load(InputArchive& archive) override {
    for (std::size_t i = 0; i < parameters().size(); ++i)
      archive.try_read("more" + std::to_string(i), state_of<Bare>(*this, parameters()[i]).more, true);
  }
};

struct Stateless : Optimizer {
  explicit Stateless(Parameters parameters) : Optimizer(std::move(parameters), rate()) {}
  at::Tensor step(LossClosure = nullptr) override {
    return for_each(*this, [](auto& parameter, const auto& gradient, double lr) { parameter.sub_(gradient, lr); });
  }
};

// ---- derived from LibTorch's

struct Plain : torch::optim::Adam {
  explicit Plain(Parameters parameters) : Adam(std::move(parameters), torch::optim::AdamOptions(0.1).amsgrad(true)) {}
};

struct Derived : torch::optim::Adam {
  explicit Derived(Parameters parameters) : Adam(std::move(parameters), torch::optim::AdamOptions(0.1)) {}
  at::Tensor step(LossClosure closure = nullptr) override {
    factor *= 0.8;
    for_each(*this, [&](auto& parameter, const auto&, double lr) { parameter.mul_(1 - lr * factor); });
    return Adam::step(std::move(closure));
  }
  void save(OutputArchive& archive) const override {
    Adam::save(archive);
    archive.write("factor", c10::IValue(factor));
  }
  void load(InputArchive& archive) override {
    Adam::load(archive);
    c10::IValue value;
    archive.read("factor", value);
    factor = value.toDouble();
  }
  double factor = 1;
};

// ---- options of its own

struct SavedOptions : torch::optim::OptimizerCloneableOptions<SavedOptions> {
  double lr = 0.1, decay = 1;
  double get_lr() const override { return lr; }
  void set_lr(const double value) override { lr = value; }
  void serialize(InputArchive& archive) override {
    c10::IValue value;
    archive.read("lr", value);
    lr = value.toDouble();
    archive.read("decay", value);
    decay = value.toDouble();
  }
  void serialize(OutputArchive& archive) const override {
    archive.write("lr", c10::IValue(lr));
    archive.write("decay", c10::IValue(decay));
  }
};

struct WithOptions : Optimizer {
  explicit WithOptions(Parameters parameters) : Optimizer(std::move(parameters), std::make_unique<SavedOptions>()) {}
  at::Tensor step(LossClosure = nullptr) override {
    auto& options = static_cast<SavedOptions&>(param_groups()[0].options());
    options.decay *= 0.9;
    options.lr *= 0.95;
    return for_each(
        *this, [&](auto& parameter, const auto& gradient, double lr) { parameter.sub_(gradient, lr * options.decay); });
  }
};

struct UnsavedOptions : torch::optim::OptimizerCloneableOptions<UnsavedOptions> {
  double lr = 0.1;
  double get_lr() const override { return lr; }
  void set_lr(const double value) override { lr = value; }
};

struct WithUnsavedOptions : Optimizer {
  explicit WithUnsavedOptions(Parameters parameters)
      : Optimizer(std::move(parameters), std::make_unique<UnsavedOptions>()) {}
  at::Tensor step(LossClosure = nullptr) override {
    auto& options = param_groups()[0].options();
    options.set_lr(options.get_lr() * 0.9);
    return for_each(*this, [](auto& parameter, const auto& gradient, double lr) { parameter.sub_(gradient, lr); });
  }
};

// ---- LibTorch's own

struct Sgd : torch::optim::SGD {
  using SGD::SGD;
};

}  // namespace tandem::test::own
