// Clipping of sparse gradients beside that of the dense ones that they stand for.
#include <limits>

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "nn/gradients.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Embeddings, with words that come several times, beside a dense layer.
struct Words : torch::nn::Module {
  Words(bool sparse, bool with_dense) {
    words = register_module("words", torch::nn::Embedding(torch::nn::EmbeddingOptions(9, 4).sparse(sparse)));
    if (with_dense) dense = register_module("dense", torch::nn::Linear(4, 1));
  }
  at::Tensor forward(const at::Tensor& indices) {
    const at::Tensor rows = words(indices);
    return (dense.is_empty() ? rows : dense(rows)).pow(2).sum();
  }
  torch::nn::Embedding words{nullptr};
  torch::nn::Linear dense{nullptr};
};

at::Tensor indices_of(int rank, int step) { return at::tensor({rank, 3, 3, (rank + step) % 9, 7}, at::kLong); }

struct Clipped {
  std::vector<double> norms;
  Gradients gradients;
};

using Clip = std::function<at::Tensor(Accelerator&, const std::vector<at::Tensor>& parameters)>;

std::vector<Clipped> clip_on(int ranks, bool sparse, bool with_dense, const Clip& clip, LaunchConfig config = {}) {
  return on_ranks<Clipped>(ranks, config, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<Words>(sparse, with_dense));
    initialise(*model);
    Clipped clipped;
    for (int step = 0; step < 3; ++step) {
      drop_gradients(*model);
      accelerator.backward(model->forward(indices_of(accelerator.rank(), step)));
      const at::Tensor held = model->words->weight.grad();
      if (held.is_sparse() != sparse) throw std::logic_error("another layout");
      const at::Tensor norm = clip(accelerator, model->parameters());
      clipped.norms.push_back(norm.defined() ? norm.item<double>() : -1);
      clipped.gradients.push_back(gradients_of(*model));
      if (!held.to_dense().equal(clipped.gradients.back()[0])) throw std::logic_error("not clipped in place");
      descend(*model, 0.1);
    }
    return clipped;
  });
}

void check_like_dense(int ranks, bool with_dense, const Clip& clip, const LaunchConfig& config = {}) {
  const auto sparse = clip_on(ranks, true, with_dense, clip, config);
  const auto dense = clip_on(ranks, false, with_dense, clip, config);
  for (std::size_t rank = 0; rank < sparse.size(); ++rank) {
    CHECK(difference(sparse[rank].gradients, dense[0].gradients) == "");
    CHECK(sparse[rank].norms == sparse[0].norms);
    for (std::size_t step = 0; step < 3; ++step)
      CHECK(sparse[rank].norms[step] == Approx(dense[0].norms[step]).epsilon(1e-5));
  }
}

}  // namespace

TEST_CASE("sparse gradients are clipped as the dense ones that they stand for, by every norm") {
  const int ranks = GENERATE(1, 2, 3);
  const bool with_dense = GENERATE(true, false), fused = GENERATE(true, false);
  const double norm_type = GENERATE(2.0, 1.0, 3.0, 0.5, kInf, 0.0, -kInf, -1.0);
  const double max_norm = GENERATE(0.05, 1e6);
  CAPTURE(ranks, with_dense, fused, norm_type, max_norm);
  check_like_dense(ranks, with_dense,
                   [&](Accelerator& accelerator, const auto& parameters) {
                     return accelerator.clip_grad_norm_(parameters, max_norm, norm_type);
                   },
                   {.fused_optimizers = fused});
}

TEST_CASE("the values of sparse gradients are limited as those of the dense ones that they stand for") {
  const int ranks = GENERATE(1, 2, 3);
  const double limit = GENERATE(0.0, 0.01, 0.3, 1e6);
  check_like_dense(ranks, true, [&](Accelerator& accelerator, const auto& parameters) {
    accelerator.clip_grad_value_(parameters, limit);
    return at::Tensor();
  });
}

TEST_CASE("a sparse gradient of one place that comes twice is the sum, for norm, scale and limits") {
  const auto seen = on_ranks<std::vector<double>>(1, [](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<Words>(true, false));
    const auto weight = model->words->weight;
    const auto gradient = [&] {
      const at::Tensor places = at::tensor({3, 3}, at::kLong).view({1, 2});
      weight.mutable_grad() = at::sparse_coo_tensor(places, at::full({2, 4}, 1.0F), {9, 4});
    };
    gradient();
    std::vector<double> seen{accelerator.clip_grad_norm_(model, 1.0).item<double>(),
                             weight.grad().to_dense()[3][0].item<double>()};
    gradient();
    accelerator.clip_grad_value_(model, 1.5);
    seen.push_back(weight.grad().to_dense()[3][0].item<double>());
    return seen;
  });
  CHECK(seen[0][0] == Approx(4.0));
  CHECK(seen[0][1] == Approx(0.5));
  CHECK(seen[0][2] == Approx(1.5));
}

TEST_CASE("gradients without elements have a norm, of every kind") {
  const int ranks = GENERATE(1, 2);
  const bool fused = GENERATE(true, false), sparse = GENERATE(true, false);
  const double norm_type = GENERATE(2.0, 1.0, kInf, 0.0);
  const auto norms = on_ranks<std::vector<double>>(ranks, {.fused_optimizers = fused}, [&](Accelerator& accelerator) {
    struct Empty : torch::nn::Module {
      explicit Empty(bool sparse)
          : none(register_parameter("none", at::zeros({0, 4}))),
            one(register_parameter("one", at::zeros({1}))),
            words(register_module("words", torch::nn::Embedding(torch::nn::EmbeddingOptions(9, 4).sparse(sparse)))) {}
      at::Tensor none, one;
      torch::nn::Embedding words;
    };
    auto model = accelerator.prepare(std::make_shared<Empty>(sparse));
    const auto nothing = model->none.sum() + model->words(at::empty({0}, at::kLong)).sum();
    accelerator.backward(nothing);
    const double of_nothing = accelerator.clip_grad_norm_(model->parameters(), 1.0, norm_type).template item<double>();
    drop_gradients(*model);
    accelerator.backward(model->none.sum() + model->words(at::empty({0}, at::kLong)).sum() + model->one.sum() * 3);
    return std::vector<double>{
        of_nothing, accelerator.clip_grad_norm_(model->parameters(), 1.0, norm_type).template item<double>()};
  });
  for (const auto& seen : norms) {
    if (norm_type != 0) CHECK(seen[0] == 0);
    if (norm_type != 0) CHECK(seen[1] == Approx(3.0));
  }
}

TEST_CASE("clipped sparse gradients train as dense ones") {
  const int ranks = GENERATE(1, 2);
  const auto trained = [&](bool sparse) {
    return on_ranks<at::Tensor>(ranks, [&](Accelerator& accelerator) {
      auto net = std::make_shared<Words>(sparse, true);
      torch::optim::SGD sgd(net->parameters(), 0.1);
      auto [model, optimizer] = accelerator.prepare(net, sgd);
      initialise(*net);
      for (int step = 0; step < 6; ++step) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(model->forward(indices_of(accelerator.rank(), step)));
        accelerator.clip_grad_norm_(model, 0.2);
        optimizer.step();
        optimizer.zero_grad();
      }
      return net->words->weight.detach().clone();
    });
  };
  const auto sparse = trained(true), dense = trained(false);
  for (const auto& weight : sparse) {
    CHECK(at::allclose(weight, dense[0], 1e-5, 1e-6));
    CHECK(weight.equal(sparse[0]));
  }
}

TEST_CASE("what cannot be done with sparse tensors is said") {
  const int ranks = GENERATE(1, 2);
  const auto sparse = [] { return at::eye(3).to_sparse(); };
  const auto reduced =
      run_ranks_expecting_error(ranks, [&](Accelerator& accelerator) { accelerator.reduce(sparse()); });
  CHECK_THROWS_AS(reduced.rethrow_cause(), CollectiveError);
  CHECK_THAT(reduced.what(), ContainsSubstring("reduce needs dense tensors") && ContainsSubstring("to_dense()"));
  const auto limited = run_ranks_expecting_error(ranks, [&](Accelerator& accelerator) {
    auto model = accelerator.prepare(std::make_shared<Words>(true, false));
    accelerator.backward(model->forward(indices_of(accelerator.rank(), 0)));
    accelerator.clip_grad_value_(model, -1);
  });
  CHECK_THROWS_AS(limited.rethrow_cause(), ConfigError);
}
