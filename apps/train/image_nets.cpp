#include "image_nets.h"

#include <utility>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>

#include "tandem/nn/channels_last.h"

namespace train {
namespace {

namespace nn = torch::nn;

constexpr std::int64_t kClasses = 10;

nn::Sequential make_mlp(const std::vector<std::int64_t>& hidden) {
  nn::Sequential model;
  std::int64_t width = 28 * 28;
  for (std::int64_t next : hidden) {
    model->push_back(nn::Linear(width, next));
    model->push_back(nn::ReLU());
    width = next;
  }
  model->push_back(nn::Linear(width, kClasses));
  return model;
}

nn::Sequential make_cnn() {
  return nn::Sequential(nn::Conv2d(1, 32, 3), nn::ReLU(), nn::Conv2d(32, 64, 3), nn::ReLU(), nn::MaxPool2d(2),
                        nn::Flatten(), nn::Linear(9216, 128), nn::ReLU(), nn::Linear(128, kClasses));
}

// Layers in a row, on pixels in a row or on images.
class ImageNet : public Net {
 public:
  ImageNet(nn::Sequential layers, bool flat) : layers_(std::move(layers)), flat_(flat) {
    for (const auto& layer : layers_->named_children()) register_module(layer.key(), layer.value());
    tandem::nn::to_channels_last(*this);
  }

  at::Tensor forward(const at::Tensor& images) override {
    return layers_->forward(flat_ ? images.flatten(1) : images.contiguous(at::MemoryFormat::ChannelsLast));
  }

 private:
  nn::Sequential layers_;  // not registered itself: its name would come before those of the layers
  bool flat_;
};

}  // namespace

std::shared_ptr<Net> make_image_net(const Options& options) {
  const bool cnn = options.model == ModelKind::cnn;
  return std::make_shared<ImageNet>(cnn ? make_cnn() : make_mlp(options.hidden), !cnn);
}

}  // namespace train
