// Gradients that all ranks have in one memory, until one of them writes.
#include <optional>
#include <set>

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "nn/gradients.h"

using namespace tandem;
using namespace tandem::test;

namespace {

std::shared_ptr<torch::nn::SequentialImpl> make_net() {
  torch::nn::Sequential net(torch::nn::Linear(40, 70), torch::nn::Linear(70, 40), torch::nn::Linear(40, 1));
  initialise(*net);
  return net.ptr();
}

at::Tensor loss_of(torch::nn::SequentialImpl& net, int rank, int step) {
  return net.forward<at::Tensor>(at::full({3, 40}, 0.1F * static_cast<float>(rank + 2 * step + 1))).pow(2).mean();
}

const void* memory_of(const at::Tensor& tensor) { return tensor.const_data_ptr(); }

std::vector<const void*> memory_of_gradients(const torch::nn::Module& module) {
  std::vector<const void*> memory;
  for (const at::Tensor& parameter : module.parameters()) memory.push_back(memory_of(parameter.grad()));
  return memory;
}

bool differ_everywhere(const std::vector<const void*>& a, const std::vector<const void*>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i] == b[i]) return false;
  return true;
}

}  // namespace

TEST_CASE("all ranks' reduced gradients are one memory, or one a rank") {
  const bool share = GENERATE(true, false);
  const auto memory = on_ranks<std::vector<const void*>>(
      3, {.gradient_reducer = {.share_gradients = share}}, [](Accelerator& accelerator) {
        auto model = accelerator.prepare(make_net());
        for (int step = 0; step < 3; ++step) {
          drop_gradients(*model);
          accelerator.backward(loss_of(*model, accelerator.rank(), step));
        }
        accelerator.wait_for_everyone();
        auto memory = memory_of_gradients(*model);
        accelerator.wait_for_everyone();
        return memory;
      });
  if (share) {
    CHECK(memory[0] == memory[1]);
    CHECK(memory[0] == memory[2]);
  } else {
    CHECK(differ_everywhere(memory[0], memory[1]));
    CHECK(differ_everywhere(memory[1], memory[2]));
  }
}

TEST_CASE("what a rank writes to its gradients no other rank sees, and it lasts") {
  // Each rank writes something else, in another way.
  const auto write = [](const at::Tensor& gradient, int rank) {
    const at::NoGradGuard no_grad;
    if (rank == 0) gradient.detach().mul_(3);
    if (rank == 1) gradient.mutable_data_ptr<float>()[0] = 7;
    if (rank == 2) gradient.zero_();
  };
  const auto seen = on_ranks<std::vector<at::Tensor>>(4, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(make_net());
    const int rank = accelerator.rank();
    std::vector<at::Tensor> wrong;
    for (int step = 0; step < 3; ++step) {
      drop_gradients(*model);
      accelerator.backward(loss_of(*model, rank, step));
      const auto before = gradients_of(*model);
      accelerator.wait_for_everyone();
      for (const auto& parameter : model->parameters()) write(parameter.grad(), rank);
      accelerator.wait_for_everyone();
      const auto after = gradients_of(*model);
      for (std::size_t i = 0; i < before.size(); ++i) {
        at::Tensor expected = before[i].clone();
        write(expected, rank);
        wrong.push_back((after[i] != expected).sum());
      }
    }
    return wrong;
  });
  for (const auto& of_rank : seen)
    for (const auto& wrong : of_rank) CHECK(wrong.item<int>() == 0);
}

TEST_CASE("gradients outlive the launch, and then belong to their ranks") {
  std::vector<std::shared_ptr<torch::nn::SequentialImpl>> nets(2);
  const auto in_launch = on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
    auto& net = nets[static_cast<std::size_t>(accelerator.rank())] = make_net();
    auto model = accelerator.prepare(net);
    for (int step = 0; step < 2; ++step) {
      drop_gradients(*model);
      accelerator.backward(loss_of(*model, accelerator.rank(), step));
    }
    return gradients_of(*net);
  });
  for (const auto& parameter : nets[0]->parameters()) parameter.grad().detach().zero_();
  const auto of_other = gradients_of(*nets[1]);
  for (std::size_t i = 0; i < of_other.size(); ++i) {
    CHECK(of_other[i].equal(in_launch[1][i]));
    CHECK(of_other[i].abs().max().item<float>() > 0);
  }
}

TEST_CASE("a prepared model outlives the launch, and with it what a program asks its reducer") {
  std::vector<std::optional<nn::Model<torch::nn::SequentialImpl>>> models(2);
  run_ranks(2, [&](Accelerator& accelerator) {
    const auto model = accelerator.prepare(make_net());
    for (int step = 0; step < 2; ++step) accelerator.backward(loss_of(*model, accelerator.rank(), step));
    models[static_cast<std::size_t>(accelerator.rank())].emplace(model);
  });
  for (auto& model : models) {
    CHECK(model->reducer().unused_parameters().empty());
    model->reducer().set_communication_hook(nn::bf16_compression());
    CHECK(model->reducer().has_communication_hook());
    drop_gradients(**model);
    loss_of(**model, 0, 0).backward();  // no rank is there to be asked
  }
  const auto first = gradients_of(**models[0]), second = gradients_of(**models[1]);
  REQUIRE(!first.empty());
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].equal(second[i]));
}

namespace {

using Step = std::function<void(Accelerator&, const torch::nn::Module&)>;

// The weights after some steps in which `after_backward` changes gradients, on each rank.
std::vector<std::vector<at::Tensor>> trained(bool share, const Step& after_backward, bool sets_to_none = true) {
  return on_ranks<std::vector<at::Tensor>>(
      2, {.gradient_accumulation_steps = GENERATE(1, 2), .gradient_reducer = {.share_gradients = share}},
      [&](Accelerator& accelerator) {
        const auto net = make_net();
        torch::optim::AdamW adamw(net->parameters(), 1e-2);
        auto [model, optimizer] = accelerator.prepare(net, adamw);
        for (int step = 0; step < 12; ++step) {
          auto window = accelerator.accumulate(model);
          accelerator.backward(loss_of(*model, accelerator.rank(), step));
          if (accelerator.sync_gradients()) after_backward(accelerator, *net);
          optimizer.step();
          optimizer.zero_grad(sets_to_none);
        }
        std::vector<at::Tensor> weights;
        for (const auto& parameter : net->parameters()) weights.push_back(parameter.detach().clone());
        return weights;
      });
}

}  // namespace

TEST_CASE("training is the same to the bit with and without one memory, whatever changes gradients") {
  const auto [name, change] = GENERATE(table<std::string, Step>({
      {"nothing", [](Accelerator&, const torch::nn::Module&) {}},
      {"torch's clipping on every rank",
       [](Accelerator&, const torch::nn::Module& net) { torch::nn::utils::clip_grad_norm_(net.parameters(), 0.01); }},
      {"a clipping that takes part", [](Accelerator& a, const torch::nn::Module& net) {
         a.clip_grad_norm_(net.parameters(), 0.01);
       }},
      {"two clippings", [](Accelerator& a, const torch::nn::Module& net) {
         a.clip_grad_norm_(net.parameters(), 0.02);
         a.clip_grad_norm_(net.parameters(), 0.01);
       }},
      {"one that does nothing", [](Accelerator& a, const torch::nn::Module& net) {
         a.clip_grad_norm_(net.parameters(), 1e9);
       }},
      {"the maximum norm", [](Accelerator& a, const torch::nn::Module& net) {
         a.clip_grad_norm_(net.parameters(), 0.01, std::numeric_limits<double>::infinity());
       }},
      {"limits of values", [](Accelerator& a, const torch::nn::Module& net) {
         a.clip_grad_value_(net.parameters(), 1e-3);
       }},
      {"a change of one gradient before clipping", [](Accelerator& a, const torch::nn::Module& net) {
         net.parameters()[0].grad().detach().mul_(0.5);
         a.clip_grad_norm_(net.parameters(), 0.01);
       }},
  }));
  const bool sets_to_none = GENERATE(true, false);
  CAPTURE(name, sets_to_none);
  const auto shared = trained(true, change, sets_to_none), own = trained(false, change, sets_to_none);
  for (std::size_t rank = 0; rank < 2; ++rank)
    for (std::size_t i = 0; i < own[rank].size(); ++i) CHECK(shared[rank][i].equal(own[0][i]));
}

TEST_CASE("the norm is that of all gradients, whether their reduction has added up squares or not") {
  const auto type = GENERATE(at::kFloat, at::kDouble, at::kBFloat16);
  const auto norms = on_ranks<std::vector<std::pair<double, double>>>(3, [&](Accelerator& accelerator) {
    const auto net = make_net();
    net->to(type);
    auto model = accelerator.prepare(net);
    std::vector<std::pair<double, double>> norms;
    for (int step = 0; step < 4; ++step) {
      drop_gradients(*model);
      accelerator.backward(
          net->forward<at::Tensor>(at::full({3, 40}, 0.1 * (accelerator.rank() + step + 1), type)).pow(2).mean());
      double squares = 0;
      for (const auto& parameter : net->parameters())
        squares += parameter.grad().to(at::kDouble).pow(2).sum().item<double>();
      norms.emplace_back(accelerator.clip_grad_norm_(model, 1e9).item<double>(), std::sqrt(squares));
    }
    return norms;
  });
  const double tolerance = type == at::kDouble ? 1e-12 : type == at::kFloat ? 1e-6 : 4e-3;
  for (const auto& [norm, expected] : norms[0]) CHECK(std::abs(norm - expected) <= tolerance * expected);
  CHECK(norms[0] == norms[1]);
  CHECK(norms[0] == norms[2]);
}

TEST_CASE("clipping leaves the gradients one memory") {
  const auto memory = on_ranks<std::vector<const void*>>(2, [](Accelerator& accelerator) {
    const auto net = make_net();
    torch::optim::SGD sgd(net->parameters(), 1e-2);
    auto [model, optimizer] = accelerator.prepare(net, sgd);
    std::vector<const void*> memory;
    for (int step = 0; step < 4; ++step) {
      accelerator.backward(loss_of(*model, accelerator.rank(), step));
      accelerator.clip_grad_norm_(model, 0.01);
      optimizer.step();
      accelerator.wait_for_everyone();
      memory = memory_of_gradients(*model);
      accelerator.wait_for_everyone();
      optimizer.zero_grad();
    }
    return memory;
  });
  CHECK(memory[0] == memory[1]);
}
