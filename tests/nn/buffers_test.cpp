// When buffers, and weights that forward passes write to, follow rank 0.
#include <filesystem>
#include <functional>

#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

torch::nn::Sequential generator() { return torch::nn::Sequential(torch::nn::Linear(4, 4), torch::nn::BatchNorm1d(4)); }

torch::nn::Sequential critic() {
  return torch::nn::Sequential(torch::nn::Linear(4, 4), torch::nn::BatchNorm1d(4), torch::nn::Linear(4, 1));
}

at::Tensor noise(int rank, int step) {
  return at::arange(32, at::kFloat).view({8, 4}).mul(0.37 * (rank + 1)).add(step).sin();
}

std::vector<at::Tensor> copies(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.detach().clone());
  return result;
}

bool equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& one, const auto& other) { return at::equal(one, other); });
}

// What a step does with two models whose forward passes and backward passes come in some order.
struct Order {
  const char* name;
  std::function<void(Accelerator&, torch::nn::Sequential&, torch::nn::Sequential&, int step)> step;
};

// Each is a step that plain LibTorch takes without an error.
const Order kOrders[] = {
    {"the issue's GAN",
     [](Accelerator& a, torch::nn::Sequential& g, torch::nn::Sequential& d, int step) {
       const auto fake = g->forward(noise(a.rank(), step));
       a.backward(d->forward(fake.detach()).mean());
       a.backward(d->forward(fake).mean());
     }},
    {"one forward, two losses",
     [](Accelerator& a, torch::nn::Sequential& g, torch::nn::Sequential&, int step) {
       const auto out = g->forward(noise(a.rank(), step));
       a.backward(out.mean(), {.retain_graph = true});
       a.backward(out.pow(2).mean());
     }},
    {"a frozen batch norm, two losses",
     [](Accelerator& a, torch::nn::Sequential& g, torch::nn::Sequential&, int step) {
       g[1]->eval();
       const auto out = g->forward(noise(a.rank(), step));
       a.backward(out.mean(), {.retain_graph = true});
       a.backward(out.pow(2).mean());
       g[1]->train();
     }},
    {"a batch norm that learns and is frozen in the same step",
     [](Accelerator& a, torch::nn::Sequential& g, torch::nn::Sequential&, int step) {
       const auto learns = g->forward(noise(a.rank(), step));
       g[1]->eval();
       const auto frozen = g->forward(noise(a.rank(), step + 1));
       g[1]->train();
       a.backward(learns.pow(2).mean());
       a.backward(frozen.pow(2).mean());
     }},
    {"two forwards, then two backwards",
     [](Accelerator& a, torch::nn::Sequential& g, torch::nn::Sequential&, int step) {
       const auto first = g->forward(noise(a.rank(), step)), second = g->forward(noise(a.rank(), step + 1));
       a.backward(first.pow(2).mean());
       a.backward(second.pow(2).mean());
     }},
    {"a gradient penalty",
     [](Accelerator& a, torch::nn::Sequential&, torch::nn::Sequential& d, int step) {
       const auto real = noise(a.rank(), step).requires_grad_();
       const auto out = d->forward(real);
       const auto slope =
           torch::autograd::grad({out.sum()}, {real}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
       a.backward(out.mean(), {.retain_graph = true});
       a.backward(slope.pow(2).sum());
     }},
    {"a part that is computed again in backward",
     [](Accelerator& a, torch::nn::Sequential& g, torch::nn::Sequential& d, int step) {
       const auto input = noise(a.rank(), step);
       const auto fake = g->forward(input);
       a.backward(d->forward(fake.detach()).mean());
       const auto again = g->forward(input);
       a.backward(d->forward(again).mean() + fake.pow(2).mean());
     }},
};

struct Ended {
  std::vector<at::Tensor> buffers, gradients;
};

enum class Around { nothing, accumulation, no_sync_first, join, local_sgd };

Ended train(Accelerator& a, const Order& order, Around around, bool steps) {
  auto g = generator(), d = critic();
  torch::optim::SGD of_g(g->parameters(), 0.05), of_d(d->parameters(), 0.05);
  auto [gen, disc, opt_g, opt_d] = a.prepare(g, d, of_g, of_d);
  {
    const at::NoGradGuard no_grad;
    double value = 0;
    for (auto* net : {&g, &d})
      for (auto& parameter : (*net)->parameters())
        parameter.copy_(at::arange(parameter.numel(), at::kFloat).view(parameter.sizes()).add(value += 1).sin());
  }
  const auto one = [&](int step) {
    order.step(a, g, d, step);
    if (!steps) return;
    opt_g.step();
    opt_d.step();
    opt_g.zero_grad();
    opt_d.zero_grad();
  };
  const auto all = [&] {
    for (int step = 0; step < 4; ++step) {
      if (around == Around::accumulation) {
        const auto window = a.accumulate(gen);
        one(step);
      } else if (around == Around::no_sync_first && step == 0) {
        const auto alone = a.no_sync();
        order.step(a, g, d, step);
      } else {
        one(step);
      }
    }
  };
  if (around == Around::join)
    a.join_uneven_inputs(all);
  else if (around == Around::local_sgd)
    a.local_sgd(2, [&](nn::LocalSgd& local) {
      for (int step = 0; step < 4; ++step) {
        one(step);
        local.step();
      }
    });
  else
    all();
  if (!steps) a.backward(g->forward(noise(0, 9)).mean() + d->forward(noise(0, 9)).mean());  // no graph waits any more
  Ended ended;
  for (auto* net : {&g, &d}) {
    for (const auto& buffer : copies((*net)->buffers())) ended.buffers.push_back(buffer);
    for (const auto& parameter : (*net)->parameters())
      ended.gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::zeros({1}));
  }
  return ended;
}

}  // namespace

TEST_CASE("passes in any order that LibTorch allows work on several ranks, and buffers follow rank 0") {
  for (const Order& order : kOrders)
    for (const Around around :
         {Around::nothing, Around::accumulation, Around::no_sync_first, Around::join, Around::local_sgd})
      for (const bool steps : {true, false})
        for (const int ranks : {2, 3}) {
          CAPTURE(order.name, static_cast<int>(around), steps, ranks);
          const auto ended =
              on_ranks<Ended>(ranks, {.gradient_accumulation_steps = around == Around::accumulation ? 2 : 1},
                              [&](Accelerator& a) { return train(a, order, around, steps); });
          for (int rank = 1; rank < ranks; ++rank)
            CHECK(equal(ended[0].buffers, ended[static_cast<std::size_t>(rank)].buffers));
        }
}

TEST_CASE("a graph that waits for its backward pass gets the gradient of the buffers that it was made with") {
  // The batch norm is frozen in the waiting graph, whose gradient needs the buffers; they are other ones on each rank.
  const auto gradients = [](int ranks, bool broadcast) {
    return on_ranks<at::Tensor>(ranks, {.gradient_reducer = {.broadcast_buffers = broadcast}}, [](Accelerator& a) {
      torch::nn::BatchNorm1d norm(4);
      torch::nn::Linear other(4, 1);
      auto [model, head] = a.prepare(norm, other);
      norm->forward(noise(a.rank(), 0));  // each rank's own buffers
      norm->eval();
      const auto input = noise(a.rank(), 1).requires_grad_();
      const auto frozen = norm->forward(input);
      a.backward(other->forward(noise(a.rank(), 2)).mean());
      return torch::autograd::grad({frozen.pow(2).sum()}, {input})[0];
    });
  };
  const auto follow = gradients(2, true), apart = gradients(2, false);
  for (std::size_t rank = 0; rank < 2; ++rank) CHECK(at::equal(follow[rank], apart[rank]));
}

TEST_CASE("a buffer that the program holds follows after the next update") {
  const auto means = on_ranks<at::Tensor>(2, [](Accelerator& a) {
    torch::nn::Sequential net(torch::nn::BatchNorm1d(4));
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto [model, optimizer] = a.prepare(net, sgd);
    const at::Tensor held = net->buffers()[0];
    const auto view = held.view({2, 2});
    for (int step = 0; step < 2; ++step) {
      a.backward(net->forward(noise(a.rank(), step)).pow(3).mean());
      optimizer.step();
    }
    return view.clone();
  });
  CHECK(at::equal(means[0], means[1]));
}

TEST_CASE("embeddings with max_norm, which write to their weights in forward, are rank 0's on all ranks") {
  const bool bag = GENERATE(true, false);
  const auto sharding = GENERATE(Sharding::automatic, Sharding::none, Sharding::optimizer);
  const auto weights = on_ranks<std::vector<at::Tensor>>(3, {.sharding = sharding}, [&](Accelerator& a) {
    torch::nn::Embedding words(torch::nn::EmbeddingOptions(9, 4).max_norm(0.5));
    torch::nn::EmbeddingBag bags(torch::nn::EmbeddingBagOptions(9, 4).max_norm(0.5));
    torch::nn::Linear head(4, 1);
    auto table = bag ? bags->weight : words->weight;
    torch::optim::SGD sgd({table, head->weight, head->bias}, torch::optim::SGDOptions(0.5).momentum(0.9));
    auto [m1, m2, m3, optimizer] = a.prepare(words, bags, head, sgd);
    for (int step = 0; step < 5; ++step) {
      const auto rows = at::tensor({a.rank(), (a.rank() + step) % 9, (2 * a.rank() + step) % 9}, at::kLong);
      const auto looked_up = bag ? bags->forward(rows.view({1, 3})) : words->forward(rows);
      a.backward(head->forward(looked_up).pow(2).mean());
      optimizer.step();
      optimizer.zero_grad();
    }
    return copies({table, head->weight});
  });
  CHECK(equal(weights[0], weights[1]));
  CHECK(equal(weights[0], weights[2]));
}

namespace {

// A module with a buffer that is no ordinary tensor, and forward passes that use it.
struct OddBufferImpl : torch::nn::Module {
  explicit OddBufferImpl(const at::Tensor& buffer) {
    weight = register_parameter("weight", at::ones({4}));
    odd = register_buffer("odd", buffer.clone());
    if (buffer.layout() == at::kStrided) odd = register_buffer("odd_as_it_is", buffer);
  }
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor dense = odd.layout() == at::kStrided ? odd : odd.to_dense();
    return (x * weight).sum() * dense.to(at::kComplexFloat).abs().sum();
  }
  at::Tensor weight, odd;
};
TORCH_MODULE(OddBuffer);

}  // namespace

TEST_CASE("buffers that are expanded, sparse, of other types or empty are rank 0's as others are") {
  // Of a rank: other numbers in the same places.
  const std::vector<std::function<at::Tensor(int)>> kinds{
      [](int r) {
        return at::arange(r, r + 4).expand({3, 4});
      },
      [](int r) {
        return at::full({1, 1}, r).expand({4, 4});
      },
      [](int r) {
        return at::arange(r, r + 3).view({3, 1}).expand({3, 5}).transpose(0, 1);
      },
      [](int r) { return at::eye(4).mul(r + 1).to_sparse(); },
      [](int r) { return at::eye(4).mul(r + 1).to_sparse_csr(); },
      [](int r) { return at::eye(4).mul(r + 1).to_sparse_csc(); },
      [](int r) { return at::eye(4, at::kComplexDouble).mul(r + 1).to_sparse(); },
      [](int r) { return at::full({3}, r + 1, at::kHalf); },
      [](int r) { return at::full({3}, r == 0, at::kBool); },
      [](int r) { return at::complex(at::full({3}, r + 1.0F), at::ones({3})).conj(); },
      [](int) {
        return at::empty({0, 3});
      },
      [](int r) {
        return at::arange(12 * r, 12 * r + 12).view({3, 4}).t();
      }};
  const bool locally = GENERATE(false, true);
  for (std::size_t kind = 0; kind < kinds.size(); ++kind)
    for (const int ranks : {1, 2, 3}) {
      CAPTURE(kind, ranks, locally);
      const auto buffers = on_ranks<at::Tensor>(ranks, [&](Accelerator& a) {
        OddBuffer net(kinds[kind](a.rank()));
        torch::optim::SGD sgd(net->parameters(), 0.1);
        auto [model, optimizer] = a.prepare(net, sgd);
        const auto step = [&, &prepared = model, &stepping = optimizer] {
          a.backward(prepared(at::ones({4})));
          stepping.step();
          stepping.zero_grad();
        };
        step();
        if (locally)
          a.local_sgd(1, [&](nn::LocalSgd& local) {
            step();
            local.step();
          });
        step();
        return net->odd.is_complex() ? at::view_as_real(net->odd.to_dense().resolve_conj()).clone()
                                     : net->odd.to_dense().clone();
      });
      const at::Tensor main = kinds[kind](0).to_dense();
      for (const auto& buffer : buffers)
        CHECK(at::equal(buffer, main.is_complex() ? at::view_as_real(main.resolve_conj()) : main));
    }
}

TEST_CASE("a sparse buffer with other entries on a rank, or an expanded one only there, is an error that names it") {
  for (const bool sparse : {true, false}) {
    const auto texts = on_ranks<std::string>(2, [&](Accelerator& a) -> std::string {
      const auto of_rank_1 = sparse ? at::ones({4, 4}).to_sparse() : at::ones({4, 1}).expand({4, 4});
      const auto of_rank_0 = sparse ? at::eye(4).to_sparse() : at::ones({4, 4});
      OddBuffer net(a.rank() == 1 ? of_rank_1 : of_rank_0);
      try {
        a.prepare(net);
      } catch (const ConfigError& error) {
        return error.what();
      }
      return "none";
    });
    CHECK_THAT(texts[0], ContainsSubstring("odd") && ContainsSubstring(sparse ? "of 16 entries" : "expanded"));
    CHECK(texts[0] == texts[1]);
  }
}

TEST_CASE("files of models with expanded buffers are loaded, and sparse buffers in them are an error that says so") {
  const auto directory = std::filesystem::temp_directory_path() / "tandem_expanded_buffers";
  const auto save_and_load = [&](const at::Tensor& saved, const at::Tensor& loaded) {
    OddBuffer net(saved), other(loaded);
    io::save_model(*net, directory.string(), {});
    io::load_model(*other, directory.string());
    return other->odd.clone();
  };
  const at::Tensor positions = at::arange(4).expand({3, 4});
  CHECK(at::equal(save_and_load(positions, at::zeros({4}, at::kLong).expand({3, 4})), positions));
  CHECK(at::equal(save_and_load(at::arange(3).view({3, 1}).expand({3, 4}).contiguous(),
                                at::zeros({3, 1}, at::kLong).expand({3, 4})),
                  at::arange(3).view({3, 1}).expand({3, 4})));
  const auto text_of = [&](const at::Tensor& saved, const at::Tensor& loaded) -> std::string {
    try {
      save_and_load(saved, loaded);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "none";
  };
  CHECK_THAT(text_of(at::arange(12).view({3, 4}), positions),
             ContainsSubstring("'odd_as_it_is'") && ContainsSubstring("expanded"));
  for (const auto& sparse : {at::eye(3).to_sparse(), at::eye(3).to_sparse_csr()})
    CHECK_THAT(text_of(sparse, sparse), ContainsSubstring("'odd' is sparse"));
  std::filesystem::remove_all(directory);
}
