// The networks of tandem::models as modules. That they are torchvision's and transformers' is what
// tests/python/models_test.py compares.
#include <torch/nn/functional/loss.h>
#include <torch/optim/sgd.h>

#include "support/catch.h"
#include "support/error_of.h"
#include "support/ranks.h"
#include "tandem/core/error.h"
#include "tandem/models/gpt.h"
#include "tandem/models/gpt2.h"
#include "tandem/models/resnet.h"
#include "tandem/models/sequential_nets.h"
#include "tandem/models/vision_transformer.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Sample {
  std::function<std::shared_ptr<models::Net>(bool checkpoint)> make;
  at::Tensor inputs, targets;
};

std::vector<Sample> all_models() {
  torch::manual_seed(1);
  const at::Tensor pictures = at::randn({4, 3, 32, 32}), digits = at::randn({4, 1, 28, 28});
  const at::Tensor classes = at::tensor({0, 1, 2, 0}, at::kLong), tokens = at::randint(0, 20, {4, 8}, at::kLong);
  const auto resnet = [](bool bottleneck) {
    return [bottleneck](bool checkpoint) {
      return std::make_shared<models::ResNet>(models::ResNetLayout{.blocks = {1, 1, 1, 1}, .bottleneck = bottleneck},
                                              models::ResNetOptions{.classes = 3, .checkpoint = checkpoint});
    };
  };
  const auto vit = [](bool checkpoint) {
    return std::make_shared<models::VisionTransformer>(models::VisionTransformerOptions{.classes = 3,
                                                                                        .image_size = 32,
                                                                                        .layers = 2,
                                                                                        .width = 24,
                                                                                        .heads = 3,
                                                                                        .hidden = 48,
                                                                                        .dropout = 0.1,
                                                                                        .attention_dropout = 0.1,
                                                                                        .checkpoint = checkpoint});
  };
  return {{resnet(false), pictures, classes},
          {resnet(true), pictures, classes},
          {vit, pictures, classes},
          {[](bool) { return models::mlp({16}); }, digits, classes},
          {[](bool) { return models::cnn(); }, digits, classes},
          {[](bool checkpoint) {
             return std::make_shared<models::Gpt>(models::GptOptions{
                 .block_size = 8, .layers = 2, .width = 24, .heads = 3, .vocabulary = 20, .checkpoint = checkpoint});
           },
           tokens, tokens},
          {[](bool checkpoint) {
             return std::make_shared<models::Gpt2>(models::Gpt2Options{.vocabulary = 20,
                                                                       .positions = 8,
                                                                       .layers = 2,
                                                                       .width = 24,
                                                                       .heads = 3,
                                                                       .dropout = 0,
                                                                       .checkpoint = checkpoint});
           },
           tokens, tokens}};
}

}  // namespace

TEST_CASE("every network learns a batch on two ranks, in float32 and in bfloat16") {
  const auto precision = GENERATE(Precision::no, Precision::bf16);
  for (const Sample& sample : all_models()) {
    const auto losses = on_ranks<std::vector<double>>(2, {.mixed_precision = precision}, [&](Accelerator& accelerator) {
      auto net = sample.make(false);
      torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
      auto [model, optimizer] = accelerator.prepare(net, sgd);
      std::vector<double> all;
      for (int i = 0; i < 8; ++i) {
        const auto window = accelerator.accumulate(model);
        const at::Tensor loss =
            torch::nn::functional::cross_entropy(model(sample.inputs), sample.targets.reshape({-1}));
        accelerator.backward(loss);
        optimizer.step();
        optimizer.zero_grad();
        all.push_back(loss.item<double>());
      }
      return all;
    });
    CAPTURE(sample.inputs.sizes(), losses[0]);
    CHECK(losses[0].back() < losses[0].front());
  }
}

TEST_CASE("networks whose layers are computed again in backward passes train to the same bits") {
  for (const Sample& sample : all_models()) {
    std::vector<std::vector<at::Tensor>> trained;  // parameters and buffers, without and with
    for (const bool checkpoint : {false, true}) {
      torch::manual_seed(3);
      const auto net = sample.make(checkpoint);
      torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.05));
      for (int i = 0; i < 3; ++i) {
        torch::nn::functional::cross_entropy(net->forward(sample.inputs), sample.targets.reshape({-1})).backward();
        sgd.step();
        sgd.zero_grad();
      }
      trained.push_back(net->parameters());
      for (const at::Tensor& buffer : net->buffers()) trained.back().push_back(buffer);
    }
    CAPTURE(sample.inputs.sizes(), trained[0].size());
    CHECK(std::equal(trained[0].begin(), trained[0].end(), trained[1].begin(), trained[1].end(),
                     [](const at::Tensor& a, const at::Tensor& b) { return at::equal(a, b); }));
  }
}

TEST_CASE("the head is what makes the scores") {
  CHECK(models::resnet18()->head() == "fc");
  CHECK(models::vit_b_16({.layers = 1})->head() == "heads.head");
  CHECK(models::mlp()->head() == "4");
  CHECK(models::Gpt().head() == "head");
}

TEST_CASE("sizes and inputs that a network does not take are errors that say what it takes") {
  CHECK_THAT(error_of<ConfigError>([] { models::vit_b_16({.image_size = 28}); }), ContainsSubstring("multiple of 16"));
  CHECK_THAT(error_of<ConfigError>([] { models::vit_b_16({.width = 10, .heads = 3}); }), ContainsSubstring("3 heads"));
  CHECK_THAT(error_of<ConfigError>([] { models::Gpt2({.width = 10, .heads = 3}); }), ContainsSubstring("3 heads"));
  CHECK_THAT(error_of<ConfigError>([] { models::cnn({.size = 5}); }), ContainsSubstring("6 x 6"));
  CHECK_THAT(error_of<DataError>([] {
               models::vit_b_16({.image_size = 32, .layers = 1})->forward(at::zeros({1, 3, 48, 48}));
             }),
             ContainsSubstring("32 x 32") && ContainsSubstring("[1, 3, 48, 48]"));
  CHECK_THAT(error_of<DataError>([] {
               models::Gpt2 net({.vocabulary = 9, .positions = 4, .layers = 1, .width = 4, .heads = 2});
               net.forward(at::zeros({1, 5}, at::kLong));
             }),
             ContainsSubstring("at most 4"));
}
