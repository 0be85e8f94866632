#include "tandem/nn/channels_last.h"

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/optim/adamw.h>

#include "nn/gradients.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct ConvolutionNet : torch::nn::Module {
  explicit ConvolutionNet(bool channels_last) {
    register_module("convolution", convolution);
    register_module("linear", linear);
    initialise(*this);
    if (channels_last) nn::to_channels_last(*this);
  }

  at::Tensor forward(const at::Tensor& images) { return linear(convolution(images).relu().flatten(1)); }

  torch::nn::Conv2d convolution{torch::nn::Conv2dOptions(3, 8, 3)};
  torch::nn::Linear linear{8 * 4 * 4, 2};
};

std::vector<at::Tensor> weights_after_training(bool channels_last) {
  return on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
    const auto net = std::make_shared<ConvolutionNet>(channels_last);
    torch::optim::AdamW adamw(net->parameters(), 1e-2);
    auto [model, optimizer] = accelerator.prepare(net, adamw);
    for (int step = 0; step < 5; ++step) {
      at::Tensor images = at::arange(2 * 3 * 6 * 6, at::kFloat).view({2, 3, 6, 6}).sin() + accelerator.rank() + step;
      if (channels_last) images = images.contiguous(at::MemoryFormat::ChannelsLast);
      optimizer.zero_grad();
      accelerator.backward(model(images).square().mean());
      optimizer.step();
    }
    std::vector<at::Tensor> weights;
    for (const auto& parameter : net->parameters()) weights.push_back(parameter.detach().clone());
    return weights;
  })[0];
}

}  // namespace

TEST_CASE("channels last changes where weights lie, not what they are") {
  const ConvolutionNet plain(false), last(true);
  CHECK(last.convolution->weight.is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(last.convolution->weight.equal(plain.convolution->weight));
  CHECK(last.linear->weight.is_contiguous());
  CHECK(last.convolution->weight.is_leaf());
  CHECK(last.convolution->weight.requires_grad());
}

TEST_CASE("a model with channels last trains to the same weights, and keeps its layout") {
  const auto plain = weights_after_training(false), last = weights_after_training(true);
  for (std::size_t i = 0; i < plain.size(); ++i) CHECK(last[i].allclose(plain[i], 1e-4, 1e-5));
  CHECK(last[0].is_contiguous(at::MemoryFormat::ChannelsLast));
}
