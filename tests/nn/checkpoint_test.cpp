// nn::checkpoint beside the plain call: every kind of part, of use and of training.
#include <array>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>
#include <torch/optim/sgd.h>

#include "nn/gradients.h"
#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Tensors = std::vector<at::Tensor>;

// Calls a function through nn::checkpoint, or plainly.
struct Caller {
  bool checkpoints;
  int depth = 1;

  template <class Function, class... Inputs>
  auto operator()(const Function& function, const Inputs&... inputs) const {
    if (!checkpoints) return function(inputs...);
    if (depth == 3) {
      const auto inner = [function](const Inputs&... again) {
        return nn::checkpoint([function](const Inputs&... third) { return nn::checkpoint(function, third...); },
                              again...);
      };
      return nn::checkpoint(inner, inputs...);
    }
    if (depth == 2)
      return nn::checkpoint([function](const Inputs&... again) { return nn::checkpoint(function, again...); },
                            inputs...);
    return nn::checkpoint(function, inputs...);
  }
};

// A module with layers of many kinds, whose forward passes checkpoint, or not.
struct NetImpl : torch::nn::Module {
  torch::nn::Linear first{8, 8}, second{8, 8}, last{8, 3};
  torch::nn::BatchNorm1d norm{8}, average{torch::nn::BatchNorm1dOptions(8).momentum(std::nullopt)};
  torch::nn::Dropout dropout{0.3};
  torch::nn::Embedding words{torch::nn::EmbeddingOptions(11, 8).max_norm(0.7)};
  torch::nn::MultiheadAttention attention{torch::nn::MultiheadAttentionOptions(8, 2).dropout(0.2)};
  torch::nn::LSTM recurrent{torch::nn::LSTMOptions(8, 8).dropout(0.2).num_layers(2)};
  torch::nn::Conv1d convolution{torch::nn::Conv1dOptions(8, 8, 3).padding(1)};
  at::Tensor seen;

  NetImpl() {
    register_module("first", first);
    register_module("second", second);
    register_module("last", last);
    register_module("norm", norm);
    register_module("average", average);
    register_module("dropout", dropout);
    register_module("words", words);
    register_module("attention", attention);
    register_module("recurrent", recurrent);
    register_module("convolution", convolution);
    seen = register_buffer("seen", at::ones({8}));
  }
};
TORCH_MODULE(Net);

// A function with a gradient of its own, which saves what it is given and what it gives.
struct Cube : torch::autograd::Function<Cube> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    const at::Tensor y = x * x * x;
    context->save_for_backward({x, y});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto once = context->get_saved_variables(), twice = context->get_saved_variables();
    return {gradients[0] * 3 * once[0] * twice[0] + 0 * once[1]};
  }
};

// A part of a network: a loss of x [4, 8], of which some is computed by `call`.
struct Part {
  const char* name;
  std::function<at::Tensor(NetImpl&, const Caller& call, const at::Tensor& x)> loss;
};

const Part kParts[] = {
    {"linear and dropout",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) { return net.dropout(net.first(t).relu()); };
       return call(block, call(block, x)).pow(2).sum();
     }},
    {"batch norms that learn",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) { return net.average(net.norm(net.first(t))).tanh(); };
       return call(block, call(block, x)).pow(2).sum();
     }},
    {"a batch norm that is frozen",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       net.norm->eval();
       return call([&net](const at::Tensor& t) { return net.norm(net.first(t)).tanh(); }, x).sum();
     }},
    {"a buffer that is read and written, in part and in place",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) {
         const at::Tensor y = net.first(t) * net.seen.clone();
         const at::NoGradGuard no_grad;
         net.seen.narrow(0, 0, 4).mul_(0.5).add_(y.detach().mean(0).narrow(0, 0, 4));
         net.seen[5] = y.detach()[0][0];
         const at::AutoGradMode again(true);
         return y + net.seen.clone();
       };
       return call(block, call(block, x)).pow(2).sum();
     }},
    {"attention with dropout",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) {
         const at::Tensor by_word = t.unsqueeze(1);
         return std::get<0>(net.attention(by_word, by_word, by_word)).squeeze(1) + t;
       };
       return call(block, call(block, x)).pow(2).sum();
     }},
    {"a recurrent network",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) { return std::get<0>(net.recurrent(t.unsqueeze(1))).squeeze(1); };
       return call(block, x).pow(2).sum();
     }},
    {"a convolution, and operations in place",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) {
         at::Tensor y = net.convolution(t.t().unsqueeze(0)).relu_();
         y = y.squeeze(0).t() + 1;
         y.mul_(t);
         at::Tensor view = y.narrow(1, 2, 3);
         view.sigmoid_();
         return y;
       };
       return call(block, x).pow(2).sum();
     }},
    {"weights that the forward pass writes to",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& ids, const at::Tensor& t) { return net.words(ids) * net.first(t); };
       return call(block, at::arange(4, at::kLong) * 2, x).pow(2).sum();
     }},
    {"several inputs and outputs, in all that a batch may be",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       using Out = std::tuple<at::Tensor, std::vector<at::Tensor>, std::optional<at::Tensor>, int>;
       const auto block = [&net](const std::vector<at::Tensor>& two, const std::pair<at::Tensor, double>& third,
                                 bool add, const std::string& text) -> Out {
         const at::Tensor sum = net.first(two[0] + two[1]) * third.first * third.second;
         return {sum.exp(), {sum.sin(), add ? sum + 1 : sum}, sum.tanh(), static_cast<int>(text.size())};
       };
       const auto [a, b, c, n] =
           call(block, std::vector<at::Tensor>{x, x.cos()}, std::pair(x + 1, 0.5), true, std::string("four"));
       return (a * b[0] + b[1] * *c).sum() * n;
     }},
    {"inputs without a gradient, and an output without one",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) { return std::pair(net.first(t).tanh(), t > 0); };
       const auto [y, positive] = call(block, x.detach());
       return (y * positive).pow(2).sum() + x.sum();
     }},
    {"an input that is written to",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const at::Tensor pixels = x.detach().clone();
       return call([&net](at::Tensor t) { return net.first(t.div_(2)).tanh(); }, pixels).sum() + x.sum();
     }},
    {"weights that are used within and without, twice each",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) { return net.first(net.second(net.first(t).tanh()).tanh()); };
       const at::Tensor y = net.first(call(block, net.second(call(block, x)).tanh()));
       return (y * net.first->weight.sum()).tanh().sum();
     }},
    {"tensors that are captured",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const at::Tensor outside = net.second(x).sigmoid(), plain = at::rand({4, 8});
       const auto block = [&net, outside, plain](const at::Tensor& t) {
         return (net.first(t).tanh() * outside).exp() * plain * outside;
       };
       return call(block, x).sum() + outside.pow(2).sum();
     }},
    {"a function with a gradient of its own",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       return call([&net](const at::Tensor& t) { return Cube::apply(net.first(t).tanh()).tanh(); }, x).sum();
     }},
    {"gradients that the function takes itself",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) {
         const at::Tensor y = net.first(t).tanh();
         const at::Tensor slope = torch::autograd::grad({y.pow(2).sum()}, {net.first->weight}, {}, true, true)[0];
         return (y + slope.pow(2).sum()).sin();
       };
       return call(block, x).sum();
     }},
    {"a penalty on the gradient",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const at::Tensor y = call([&net](const at::Tensor& t) { return net.second(net.first(t).tanh()).tanh(); }, x);
       const at::Tensor slope =
           torch::autograd::grad({y.sum()}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
       return y.sum() + slope.pow(2).sum();
     }},
    {"a part of its gradients only",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const at::Tensor y = call([&net](const at::Tensor& t) { return net.second(net.first(t).tanh()).tanh(); }, x);
       const at::Tensor slope = torch::autograd::grad({y.sum()}, {net.second->weight}, {}, /*retain_graph=*/true)[0];
       return y.pow(2).sum() + slope.sum();
     }},
    {"mixed precision, also off for a while",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const nn::AutocastScope casts(at::kCPU, Precision::bf16);
       const auto block = [&net](const at::Tensor& t) {
         at::Tensor y = net.second(net.first(t).tanh());
         at::autocast::set_autocast_enabled(at::kCPU, false);
         y = net.second(y.to(at::kFloat));
         at::autocast::set_autocast_enabled(at::kCPU, true);
         return net.first(y);
       };
       return call(block, call(block, x)).to(at::kFloat).pow(2).sum();
     }},
    {"gradients that are off for a while",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       const auto block = [&net](const at::Tensor& t) {
         at::Tensor scale;
         {
           const at::NoGradGuard no_grad;
           scale = net.second(t).abs();
           scale.add_(1).div_(scale.mean());
         }
         return net.first(t) * scale * at::rand_like(scale).bernoulli_(0.5);
       };
       return call(block, call(block, x)).pow(2).sum();
     }},
    {"modules in place of functions",
     [](NetImpl& net, const Caller& call, const at::Tensor& x) {
       torch::nn::Sequential both(net.first, net.dropout);
       torch::nn::AnyModule any(net.second);
       if (!call.checkpoints) return any.forward(net.norm(both->forward(x))).pow(2).sum();
       return nn::checkpoint(any, nn::checkpoint(net.norm.ptr(), nn::checkpoint(both, x))).pow(2).sum();
     }},
};

std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor all = tensor.contiguous();
  return std::string(static_cast<const char*>(all.const_data_ptr()), all.nbytes());
}

struct Outcome {
  Tensors tensors;
  std::string difference(const Outcome& other) const {
    if (tensors.size() != other.tensors.size()) return "other numbers of tensors";
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].defined() != other.tensors[i].defined()) return "tensor " + std::to_string(i) + " is missing";
      if (tensors[i].defined() && bytes_of(tensors[i]) != bytes_of(other.tensors[i]))
        return "tensor " + std::to_string(i) + " differs";
    }
    return "";
  }
};

void add_state(Outcome& outcome, const torch::nn::Module& net) {
  for (const auto& gradient : gradients_of(net)) outcome.tensors.push_back(gradient);
  for (const auto& parameter : net.parameters()) outcome.tensors.push_back(parameter.detach().clone());
  for (const auto& buffer : net.buffers()) {
    outcome.tensors.push_back(buffer.clone());
    outcome.tensors.push_back(at::scalar_tensor(static_cast<std::int64_t>(buffer._version())));
  }
}

// All that comes out of two backward passes through one graph, and of what is drawn afterwards.
Outcome pass(const Part& part, const Caller& call) {
  Net net;
  initialise(*net);
  const at::Tensor x = at::arange(32, at::kFloat).view({4, 8}).sin().requires_grad_();
  Outcome outcome;
  for (int step = 0; step < 2; ++step) {
    const at::Tensor loss = part.loss(*net, call, x);
    loss.backward({}, /*retain_graph=*/true);
    outcome.tensors.push_back(x.grad().clone());
    loss.backward();
    outcome.tensors.push_back(loss.detach());
    outcome.tensors.push_back(x.grad().clone());
    add_state(outcome, *net);
  }
  outcome.tensors.push_back(at::rand({3}));
  return outcome;
}

at::Tensor rows(int rank, int step) {
  return at::arange(32, at::kFloat).view({4, 8}).mul(0.3 * (rank + 1)).add(step).sin();
}

// A training of a prepared model, in windows of two micro-batches.
Outcome train(Accelerator& a, const Part& part, const Caller& call, bool held_back) {
  Net net;
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.002).momentum(0.9));
  auto [model, optimizer] = a.prepare(net, sgd);
  initialise(*net);
  Outcome outcome;
  for (int step = 0; step < 6; ++step) {
    const auto micro_batch = a.accumulate(model);
    const at::Tensor x = rows(a.rank(), step).requires_grad_();
    if (held_back && step % 2 == 0) {
      const auto hold = a.no_sync(model);
      a.backward(part.loss(*net, call, x));
    } else {
      a.backward(part.loss(*net, call, x));
    }
    for (const auto& gradient : gradients_of(*net)) outcome.tensors.push_back(gradient);
    optimizer.step();
    optimizer.zero_grad();
    add_state(outcome, *net);
  }
  outcome.tensors.push_back(at::rand({3}));
  return outcome;
}

const char* const kTrained[] = {"linear and dropout",
                                "batch norms that learn",
                                "a buffer that is read and written, in part and in place",
                                "weights that the forward pass writes to",
                                "weights that are used within and without, twice each",
                                "inputs without a gradient, and an output without one",
                                "mixed precision, also off for a while"};

const Part& part_named(const std::string& name) {
  for (const Part& part : kParts)
    if (part.name == name) return part;
  throw std::runtime_error(name);
}

std::string text_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("what is checkpointed gives the bits of the plain call, whatever it does, and nested") {
  for (const Part& part : kParts)
    for (int depth = 1; depth <= 3; ++depth) {
      INFO(part.name << ", depth " << depth);
      torch::manual_seed(5);
      const Outcome plain = pass(part, {false});
      torch::manual_seed(5);
      CHECK(pass(part, {true, depth}).difference(plain) == "");
    }
}

TEST_CASE("trainings with checkpointed parts are those without, on any number of ranks") {
  for (const char* name : kTrained)
    for (int ranks : {1, 2, 3})
      for (const bool held_back : {false, true}) {
        INFO(name << ", " << ranks << " ranks" << (held_back ? ", with no_sync" : ""));
        const LaunchConfig config{.gradient_accumulation_steps = 2};
        const auto on = [&](bool checkpoints) {
          return on_ranks<Outcome>(ranks, config, [&](Accelerator& a) {
            return train(a, part_named(name), {checkpoints, 2}, held_back);
          });
        };
        const auto plain = on(false), checkpointed = on(true);
        for (std::size_t rank = 0; rank < plain.size(); ++rank) CHECK(checkpointed[rank].difference(plain[rank]) == "");
      }
}

TEST_CASE("the graph keeps nothing of what is checkpointed, and computes it once more") {
  const at::Tensor weight = at::rand({64, 64}).requires_grad_();
  int calls = 0;
  c10::weak_intrusive_ptr<c10::StorageImpl> within = at::empty({1}).storage().getWeakStorageImpl();
  const auto block = [&](const at::Tensor& t) {
    calls += 1;
    const at::Tensor y = t.mm(weight).tanh();
    within = y.storage().getWeakStorageImpl();
    return at::dropout(y.exp(), 0.5, true).mm(weight);
  };
  at::Tensor x = nn::checkpoint(block, at::rand({8, 64}));
  CHECK(within.expired());
  x = nn::checkpoint(block, x);
  CHECK(within.expired());
  CHECK(calls == 2);
  x.sum().backward();
  CHECK(calls == 4);
  CHECK(within.expired());
  const at::NoGradGuard no_grad;
  nn::checkpoint(block, x);
  CHECK(calls == 5);
}

TEST_CASE("a part within a part keeps nothing either while the outer one is not computed again") {
  const at::Tensor weight = at::rand({8, 8}).requires_grad_();
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> made;
  const auto inner = [&](const at::Tensor& t) {
    const at::Tensor y = t.mm(weight).tanh();
    made.push_back(y.storage().getWeakStorageImpl());
    return at::dropout(y, 0.5, true);
  };
  const auto outer = [&](const at::Tensor& t) {
    const at::Tensor y = nn::checkpoint(inner, t);
    made.push_back(y.storage().getWeakStorageImpl());
    return nn::checkpoint(inner, y).mm(weight);
  };
  const at::Tensor x = nn::checkpoint(outer, at::rand({4, 8}));
  CHECK(std::all_of(made.begin(), made.end(), [](const auto& one) { return one.expired(); }));
  x.sum().backward();
  CHECK(std::all_of(made.begin(), made.end(), [](const auto& one) { return one.expired(); }));
}

TEST_CASE("what a function throws is thrown, the first time and when it is computed again, and all goes on") {
  const at::Tensor weight = at::rand({8, 8}).requires_grad_();
  bool fails = true;
  const auto block = [&](const at::Tensor& t) {
    const at::Tensor y = t.mm(weight).tanh();
    if (fails) throw std::runtime_error("disk on fire");
    return y.mm(weight).tanh();
  };
  CHECK(text_of([&] { nn::checkpoint(block, at::rand({4, 8})); }) == "disk on fire");
  CHECK(text_of([&] {
          nn::checkpoint([&](const at::Tensor& t) { return nn::checkpoint(block, t); }, at::rand({4, 8}));
        }) == "disk on fire");
  fails = false;
  const at::Tensor x = at::rand({4, 8}), loss = nn::checkpoint(block, x).sum();
  fails = true;
  const at::Tensor state = at::detail::getDefaultCPUGenerator().get_state();
  CHECK(text_of([&] { loss.backward({}, true); }) == "disk on fire");
  CHECK(at::equal(state, at::detail::getDefaultCPUGenerator().get_state()));
  CHECK(at::GradMode::is_enabled());
  fails = false;
  loss.backward();
  const at::Tensor gradient = weight.grad();
  weight.mutable_grad().reset();
  block(x).sum().backward();
  CHECK(at::equal(gradient, weight.grad()));
}

TEST_CASE("a rank whose function throws when it is computed again ends the launch with that") {
  const auto error = run_ranks_expecting_error(3, [](Accelerator& a) {
    torch::nn::Linear net(4, 4);
    auto model = a.prepare(net);
    int calls = 0;
    const auto block = [&](const at::Tensor& t) {
      if (a.rank() == 1 && ++calls == 2) throw std::runtime_error("disk on fire");
      return net(t).tanh();
    };
    a.backward(nn::checkpoint(block, at::rand({2, 4})).sum());
  });
  CHECK(error.rank() == 1);
  CHECK_THAT(error.what(), ContainsSubstring("disk on fire"));
}

TEST_CASE("what would give wrong gradients is an error") {
  const at::Tensor weight = at::rand({8, 8}).requires_grad_(), bias = at::rand({8}).requires_grad_();
  const auto block = [&](const at::Tensor& t) { return at::addmm(bias, t, weight).tanh(); };
  const auto after = [&](const std::function<void(const at::Tensor& x)>& change) {
    const at::Tensor x = at::rand({4, 8}), loss = nn::checkpoint(block, x).sum();
    const at::NoGradGuard no_grad;
    change(x);
    return text_of([&] { loss.backward(); });
  };
  CHECK(after([](const at::Tensor&) {}) == "");
  CHECK_THAT(after([&](const at::Tensor&) { at::Tensor(weight).add_(1); }),
             ContainsSubstring("modified by an inplace operation"));
  CHECK_THAT(after([&](const at::Tensor&) { at::Tensor(bias).add_(1); }),
             ContainsSubstring("modified by an inplace operation"));
  CHECK_THAT(after([&](const at::Tensor& x) { at::Tensor(x).add_(1); }),
             ContainsSubstring("modified by an inplace operation"));

  const auto varying = [&](const std::function<at::Tensor(int call, const at::Tensor&)>& body) {
    int calls = 0;
    const at::Tensor loss =
        nn::checkpoint([&](const at::Tensor& t) { return body(++calls, t); }, at::rand({4, 8})).sum();
    return text_of([&] { loss.backward(); });
  };
  CHECK_THAT(varying([&](int call, const at::Tensor& t) { return call == 1 ? block(t).exp().sin() : block(t); }),
             ContainsSubstring("it has to do the same both times"));
  CHECK_THAT(varying([&](int call, const at::Tensor& t) { return block(t.narrow(0, 0, call)).exp(); }),
             ContainsSubstring("it has to do the same both times"));
  CHECK_THAT(varying([&](int, const at::Tensor& t) {
               const at::Tensor y = block(t).exp();  // which saves it
               {
                 const at::NoGradGuard no_grad;
                 y.detach().add_(1);
               }
               return y.sin();
             }),
             ContainsSubstring("modified by an inplace operation"));

  // Writing to what was computed before.
  const at::Tensor before = at::rand({4, 8}).matmul(weight);
  CHECK_THAT(text_of([&] { nn::checkpoint([](at::Tensor t) { return t.relu_().exp(); }, before); }),
             ContainsSubstring("writes (aten::relu_) to a tensor that was computed before it"));
  CHECK_THAT(text_of([&] {
               nn::checkpoint([&](const at::Tensor& t) { return before.narrow(0, 0, 2).mul_(t); }, weight.sum());
             }),
             ContainsSubstring("writes (aten::mul_)"));
}

TEST_CASE("another engine that is put in LibTorch's place later is asked through ours") {
  torch::autograd::set_default_engine_stub(torch::autograd::Engine::get_base_engine);
  const at::Tensor weight = at::rand({8, 8}).requires_grad_();
  int calls = 0;
  const auto block = [&](const at::Tensor& t) {
    calls += 1;
    return t.mm(weight).tanh().mm(weight);
  };
  nn::checkpoint(block, at::rand({4, 8})).sum().backward();
  CHECK(calls == 2);
}
