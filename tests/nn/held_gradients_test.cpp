// Gradients that the program still refers to when others follow.
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "nn/gradients.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Case {
  std::string name;
  bool share, as_view, hook;
};

std::vector<Case> cases() {
  return {{"one memory for all ranks", true, true, false},
          {"a bucket a rank", false, true, false},
          {"memory of its own", false, false, false},
          {"a communication hook", true, true, true}};
}

LaunchConfig config_of(const Case& of) {
  LaunchConfig config;
  config.gradient_reducer.share_gradients = of.share;
  config.gradient_reducer.gradient_as_bucket_view = of.as_view;
  config.gradient_reducer.bucket_bytes = 4096;  // several buckets
  config.gradient_reducer.first_bucket_bytes = 4096;
  return config;
}

nn::CommunicationHook mean_hook() {
  return [](nn::GradientBucket& bucket, comm::Communicator& communicator) -> nn::FinishReduction {
    const auto number = communicator.start_all_reduce({bucket.gradients}, {bucket.gradients}, comm::ReduceOp::mean);
    return [&communicator, number] { communicator.wait(number); };
  };
}

std::shared_ptr<torch::nn::SequentialImpl> make_net() {
  torch::nn::Sequential net(torch::nn::Linear(20, 60), torch::nn::Linear(60, 20), torch::nn::Linear(20, 1));
  initialise(*net);
  return net.ptr();
}

at::Tensor loss_of(torch::nn::SequentialImpl& net, int rank, int step) {
  const auto inputs = at::full({3, 20}, 0.05F * static_cast<float>(rank + 2 * step + 1));
  return at::tanh(net.forward<at::Tensor>(inputs)).pow(2).mean();
}

using Hold = at::Tensor (*)(const at::Tensor& gradient);

const std::vector<std::pair<std::string, Hold>>& ways_to_hold() {
  static const std::vector<std::pair<std::string, Hold>> ways{
      {"the gradient", [](const at::Tensor& gradient) { return gradient; }},
      {"its detach()", [](const at::Tensor& gradient) { return gradient.detach(); }},
      {"a view", [](const at::Tensor& gradient) { return gradient.view({-1}); }},
      {"a part", [](const at::Tensor& gradient) { return gradient.narrow(0, 0, 1); }},
      {"a part of a part", [](const at::Tensor& gradient) { return gradient.flatten().slice(0, 0, 1).detach(); }},
      {"a tensor on its storage", [](const at::Tensor& gradient) {
         return at::empty({0}, gradient.options()).set_(gradient.storage(), gradient.storage_offset(), {1}, {1});
       }}};
  return ways;
}

struct Trained {
  std::vector<at::Tensor> weights;
  std::string wrong;
};

// Steps of which each rank that `holds` keeps the gradients of every second one, until the end.
std::vector<Trained> train(int ranks, const Case& of, const std::function<bool(int rank)>& holds, Hold hold,
                           bool clips = false) {
  return on_ranks<Trained>(ranks, config_of(of), [&](Accelerator& accelerator) {
    const auto net = make_net();
    torch::optim::SGD sgd(net->parameters(), 0.05);
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    if (of.hook) model.reducer().set_communication_hook(mean_hook());
    std::vector<at::Tensor> held, as_they_were;
    for (int step = 0; step < 6; ++step) {
      accelerator.backward(loss_of(*model, accelerator.rank(), step));
      if (clips) accelerator.clip_grad_norm_(model, 0.01);
      if (step % 2 == 0 && holds(accelerator.rank()))
        for (const auto& parameter : net->parameters()) {
          held.push_back(hold(parameter.grad()));
          as_they_were.push_back(held.back().clone());
        }
      optimizer.step();
      optimizer.zero_grad();
    }
    Trained trained;
    for (std::size_t i = 0; i < held.size(); ++i)
      if (!held[i].equal(as_they_were[i])) trained.wrong += ' ' + std::to_string(i);
    for (const auto& parameter : net->parameters()) trained.weights.push_back(parameter.detach().clone());
    return trained;
  });
}

}  // namespace

TEST_CASE("a gradient that the program holds stays what it is, however it is held and by whom") {
  const int ranks = GENERATE(1, 2, 3);
  for (const Case& of : cases()) {
    const auto nobody = [](int) { return false; };
    for (const bool clips : {false, true}) {
      const auto expected = train(ranks, of, nobody, ways_to_hold()[0].second, clips);
      for (const auto& [way, hold] : ways_to_hold())
        for (const int who : {-1, 0, ranks - 1}) {
          if (clips && way != "the gradient" && way != "a part") continue;  // enough
          CAPTURE(ranks, of.name, way, who, clips);
          const auto seen = train(
              ranks, of, [&](int rank) { return who < 0 || rank == who; }, hold, clips);
          for (std::size_t rank = 0; rank < seen.size(); ++rank) {
            CHECK(seen[rank].wrong == "");
            for (std::size_t i = 0; i < seen[rank].weights.size(); ++i)
              CHECK(seen[rank].weights[i].equal(expected[rank].weights[i]));
          }
        }
    }
  }
}

TEST_CASE("a gradient that stays the parameter's is one tensor with what the program holds, as in LibTorch") {
  // Nothing drops it: what is held follows, through accumulation and reduction.
  const int ranks = GENERATE(1, 2, 3);
  const bool zeroes = GENERATE(true, false);
  for (const Case& of : cases())
    for (const auto& [way, hold] : ways_to_hold()) {
      if (way == "a part" || way == "a part of a part" || way == "a tensor on its storage") continue;
      CAPTURE(ranks, zeroes, of.name, way);
      const auto wrong = on_ranks<std::string>(ranks, config_of(of), [&, hold = hold](Accelerator& accelerator) {
        const auto net = make_net();
        auto model = accelerator.prepare(net);
        if (of.hook) model.reducer().set_communication_hook(mean_hook());
        std::vector<at::Tensor> held;
        std::string wrong;
        for (int step = 0; step < 5; ++step) {
          if (zeroes && step > 1)
            for (const auto& parameter : net->parameters()) parameter.grad().detach().zero_();
          accelerator.backward(loss_of(*model, accelerator.rank(), step));
          const auto parameters = net->parameters();
          if (step == 1)
            for (const auto& parameter : parameters) held.push_back(hold(parameter.grad()));
          for (std::size_t i = 0; i < held.size(); ++i)
            if (!held[i].flatten().equal(parameters[i].grad().flatten()))
              wrong += " step " + std::to_string(step) + " parameter " + std::to_string(i);
        }
        return wrong;
      });
      for (const auto& of_rank : wrong) CHECK(of_rank == "");
    }
}

TEST_CASE("kept gradients give the same numbers whether the program holds them or not") {
  const int ranks = GENERATE(2, 3);
  Trial trial;
  trial.make = [] { return make_net(); };
  trial.keep_gradients = true;
  std::vector<std::vector<at::Tensor>> held(static_cast<std::size_t>(ranks));
  trial.loss = [&](torch::nn::Module& module, int rank, int step) {
    auto& mine = held[static_cast<std::size_t>(rank)];
    if (step == 2)
      for (const auto& parameter : module.parameters()) mine.push_back(parameter.grad());
    if (step == 4) mine.clear();
    return loss_of(dynamic_cast<torch::nn::SequentialImpl&>(module), rank, step);
  };
  const auto expected = gradients_of_all(ranks, trial);
  for (auto& mine : held) mine.clear();
  for (const Case& of : cases()) {
    trial.config = config_of(of);
    CAPTURE(of.name);
    CHECK(difference(gradients_on_ranks(ranks, trial,
                                        [&](nn::GradientReducer& reducer) {
                                          if (of.hook) reducer.set_communication_hook(mean_hook());
                                        }),
                     expected) == "");
  }
}

TEST_CASE("ranks have one memory for gradients again when nobody holds the old ones") {
  const auto memory = on_ranks<std::vector<const void*>>(2, [](Accelerator& accelerator) {
    const auto net = make_net();
    auto model = accelerator.prepare(net);
    std::vector<at::Tensor> held;
    for (int step = 0; step < 5; ++step) {
      drop_gradients(*net);
      accelerator.backward(loss_of(*model, accelerator.rank(), step));
      held.clear();
      if (step < 3 && accelerator.rank() == 1)
        for (const auto& parameter : net->parameters()) held.push_back(parameter.grad());
    }
    accelerator.wait_for_everyone();
    std::vector<const void*> memory;
    for (const auto& parameter : net->parameters()) memory.push_back(parameter.grad().const_data_ptr());
    accelerator.wait_for_everyone();
    return memory;
  });
  CHECK(memory[0] == memory[1]);
}
