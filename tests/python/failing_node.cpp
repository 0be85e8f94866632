// A node of a training that fails as its arguments say, for failures_test.py:
// failing_node FAULT PLACE NODE FOLDER SILENCE. Where it is among the nodes the environment says; SILENCE: the
// longest one of a node, in milliseconds. Says when it acts, and at last when it ended and with what.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "tandem/tandem.h"

namespace {

using namespace tandem;

constexpr int kFaultyStep = 3;
constexpr int kSteps = 6;  // of an epoch
constexpr std::chrono::milliseconds kTimeLimit(1500);

struct Plan {
  std::string fault, place, folder;
  int node = 0, nodes = 1;
  bool acts = false;  // this node is the one that fails

  bool is(const char* other) const { return acts && place == other; }
  // Nobody can make a collective call or return from a training within what others call.
  bool inside() const { return fault != "call" && fault != "return"; }
};

void say(const char* what, const std::string& text) {
  const auto now =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch());
  std::printf("%s at %lld: %s\n", what, static_cast<long long>(now.count()), text.c_str());
  std::fflush(stdout);
}

// False: the training is to return. `a`: null before there is one.
bool fail(const Plan& plan, Accelerator* a) {
  say("acts", plan.fault);
  if (plan.fault == "throw") throw std::runtime_error("disk on fire");
  if (plan.fault == "kill") raise(SIGKILL);
  if (plan.fault == "freeze") raise(SIGSTOP);
  if (plan.fault == "cut" && std::system(std::getenv("TANDEM_TEST_CUTS")) != 0) std::abort();
  if (plan.fault == "call" && a) a->broadcast_object(1.5);
  if (plan.fault == "return" && !a) std::_Exit(0);
  const auto hung = [&] { return a ? !a->cancelled() : true; };
  while (plan.fault == "hang" && hung()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  return plan.fault != "return";
}

struct Samples : torch::data::datasets::Dataset<Samples, at::Tensor> {
  std::size_t count;
  std::function<void(std::size_t)> on_read;
  Samples(std::size_t count, std::function<void(std::size_t)> on_read) : count(count), on_read(std::move(on_read)) {}
  at::Tensor get(std::size_t index) override {
    on_read(index);
    return at::ones({4});
  }
  std::optional<std::size_t> size() const override { return count; }
};

// Something of the program's that is saved with the rest.
struct OwnState {
  std::function<void()> on_save;
  c10::IValue state_dict() const {
    on_save();
    return c10::IValue(1);
  }
  void load_state_dict(const c10::IValue&) {}
};

// An epoch of updates, then a save, then a judgement: until something happens at its place.
void train(Accelerator& a, const Plan& plan) {
  const auto due = [&](const char* place, int step) { return plan.is(place) && step == kFaultyStep; };
  torch::nn::Linear net(4, 20'000);  // its gradients go along the chain
  torch::optim::SGD sgd(net->parameters(), 0.01);
  bool failed = false;  // once is enough
  const auto nodes = static_cast<std::size_t>(plan.nodes);
  const auto read = [&](std::size_t index) {
    if (plan.is("loading") && plan.inside() && index >= kFaultyStep * nodes && !std::exchange(failed, true))
      fail(plan, &a);
  };
  data::DataLoader samples(Samples(kSteps * nodes, read), {.batch_size = 1});
  OwnState own{[&] {
    if (plan.is("save") && plan.inside()) fail(plan, &a);
  }};
  auto [model, optimizer, loader] = a.prepare(net, sgd, samples);
  a.register_for_checkpointing(own);
  for (int epoch = 0;; ++epoch) {
    int step = 0;
    for (auto& batch : loader) {
      step += 1;
      if (due("forward", step) && !fail(plan, &a)) return;
      const at::Tensor loss = model(batch).sum();
      if (due("backward", step)) loss.register_hook([&](const at::Tensor&) { fail(plan, &a); });
      a.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      if (due("reduce", step) && !fail(plan, &a)) return;
      a.reduce(loss.detach());
      if (due("loading", step) && !plan.inside() && !fail(plan, &a)) return;
    }
    if (plan.is("save") && !(plan.inside() && a.is_main()) && !fail(plan, &a)) return;
    a.save_state(plan.folder);
    step = 0;
    for (auto& batch : loader) {
      const at::NoGradGuard judging;
      if (due("evaluate", ++step) && !fail(plan, &a)) return;
      a.gather_for_metrics(model(batch));
    }
    if (plan.fault == "none" && epoch == 1) return;
  }
}

int run(const Plan& plan, Nodes nodes, std::chrono::milliseconds silence) {
  LaunchConfig config{.cpu = 1, .threads_per_rank = 1};
  if (plan.fault == "hang") config.timeout = kTimeLimit;
  if (plan.is("joining") && plan.fault == "call") config.seed += 1;
  nodes.node_timeout = silence;
  nodes.join_timeout = 2 * silence;
  nodes.on_waiting = [&, failed = false](const std::string& text) mutable {
    say("waits", text);
    if (plan.is("joining") && !std::exchange(failed, true)) fail(plan, nullptr);
  };
  config.nodes = nodes;
  try {
    launch(config, [&](Accelerator& a) { train(a, plan); });
  } catch (const std::exception& error) {
    say("ended", error.what());
    return 1;
  }
  say("ended", "well");
  return 0;
}

}  // namespace

int main(int, char** arguments) {
  const Nodes nodes = nodes_from_environment().value();
  Plan plan{.fault = arguments[1], .place = arguments[2], .folder = arguments[4]};
  plan.node = nodes.node;
  plan.nodes = nodes.nodes;
  plan.acts = nodes.node == std::atoi(arguments[3]);
  std::_Exit(run(plan, nodes, std::chrono::milliseconds(std::atoi(arguments[5]))));
}
