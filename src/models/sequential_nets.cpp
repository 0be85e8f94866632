#include "tandem/models/sequential_nets.h"

#include <utility>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>

#include "tandem/core/error.h"
#include "tandem/nn/channels_last.h"

namespace tandem::models {
namespace {

// Layers in a row, on pixels in a row or on images.
class SequentialNet : public Net {
 public:
  SequentialNet(torch::nn::Sequential layers, bool flat) : layers_(std::move(layers)), flat_(flat) {
    for (const auto& layer : layers_->named_children()) register_module(layer.key(), layer.value());
    nn::to_channels_last(*this);
  }

  at::Tensor forward(const at::Tensor& images) override {
    return layers_->forward(flat_ ? images.flatten(1) : images.contiguous(at::MemoryFormat::ChannelsLast));
  }

 private:
  torch::nn::Sequential layers_;  // not registered itself: its name would come before those of the layers
  bool flat_;
};

}  // namespace

std::shared_ptr<Net> mlp(const std::vector<std::int64_t>& hidden, const ImageShape& shape) {
  return mlp(hidden, shape.channels * shape.size * shape.size, shape.classes);
}

std::shared_ptr<Net> mlp(const std::vector<std::int64_t>& hidden, std::int64_t inputs, std::int64_t outputs) {
  torch::nn::Sequential layers;
  std::int64_t width = inputs;
  for (const std::int64_t next : hidden) {
    layers->push_back(torch::nn::Linear(width, next));
    layers->push_back(torch::nn::ReLU());
    width = next;
  }
  layers->push_back(torch::nn::Linear(width, outputs));
  return std::make_shared<SequentialNet>(layers, true);
}

std::shared_ptr<Net> cnn(const ImageShape& shape) {
  if (shape.size < 6)
    throw ConfigError("images of " + std::to_string(shape.size) + " x " + std::to_string(shape.size) +
                      " are too small for the cnn; use 6 x 6 or more");
  using namespace torch::nn;
  const std::int64_t pooled = (shape.size - 4) / 2;
  return std::make_shared<SequentialNet>(
      Sequential(Conv2d(shape.channels, 32, 3), ReLU(), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(),
                 Linear(64 * pooled * pooled, 128), ReLU(), Linear(128, shape.classes)),
      false);
}

}  // namespace tandem::models
