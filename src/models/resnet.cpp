#include "tandem/models/resnet.h"

#include <torch/nn/init.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include "models/call_layer.h"
#include "tandem/nn/channels_last.h"

namespace tandem::models {
namespace {

using torch::nn::BatchNorm2d;
using torch::nn::Conv2d;
using torch::nn::Conv2dOptions;

Conv2d convolution(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride = 1) {
  return Conv2d(Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
}

}  // namespace

// relu(x + convolutions(x)), where x is made as small and wide as the sum where it is not.
class ResNet::Block : public torch::nn::Module {
 public:
  Block(std::int64_t in, std::int64_t planes, std::int64_t stride, bool bottleneck) {
    const std::int64_t out = bottleneck ? 4 * planes : planes;
    if (stride != 1 || in != out) {  // made first, as in torchvision, for the same numbers
      shortcut_ = convolution(in, out, 1, stride);
      shortcut_norm_ = BatchNorm2d(out);
    }
    if (bottleneck) {
      add(convolution(in, planes, 1));
      add(convolution(planes, planes, 3, stride));
      add(convolution(planes, out, 1));
    } else {
      add(convolution(in, planes, 3, stride));
      add(convolution(planes, planes, 3));
    }
    if (shortcut_.is_empty()) return;
    const auto downsample = register_module("downsample", std::make_shared<torch::nn::Module>());
    downsample->register_module("0", shortcut_);
    downsample->register_module("1", shortcut_norm_);
  }

  at::Tensor forward(const at::Tensor& x) {
    at::Tensor sum = x;
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      if (i > 0) sum.relu_();
      sum = steps_[i].norm(steps_[i].convolution(sum));
    }
    sum += shortcut_.is_empty() ? x : shortcut_norm_(shortcut_(x));
    return sum.relu_();
  }

 private:
  struct Step {
    Conv2d convolution;
    BatchNorm2d norm;
  };

  void add(const Conv2d& convolution) {
    const std::string number = std::to_string(steps_.size() + 1);
    steps_.push_back({register_module("conv" + number, convolution),
                      register_module("bn" + number, BatchNorm2d(convolution->options.out_channels()))});
  }

  std::vector<Step> steps_;
  Conv2d shortcut_{nullptr};
  BatchNorm2d shortcut_norm_{nullptr};
};

ResNet::ResNet(const ResNetLayout& layout, const ResNetOptions& options) : checkpoint_(options.checkpoint) {
  conv1_ = register_module("conv1",
                           Conv2d(Conv2dOptions(options.channels, width_, 7).stride(2).padding(3).bias(false)).ptr());
  bn1_ = register_module("bn1", BatchNorm2d(width_).ptr());
  for (std::size_t i = 0; i < layout.blocks.size(); ++i)
    add_layer("layer" + std::to_string(i + 1), layout.blocks[i], 64 << i, i == 0 ? 1 : 2, layout.bottleneck);
  fc_ = register_module("fc", torch::nn::Linear(width_, options.classes).ptr());
  for (const auto& module : modules(/*include_self=*/false))
    if (const auto* convolution = module->as<torch::nn::Conv2dImpl>())
      torch::nn::init::kaiming_normal_(convolution->weight, 0, torch::kFanOut, torch::kReLU);
  nn::to_channels_last(*this);
}

void ResNet::add_layer(const std::string& name, std::int64_t blocks, std::int64_t planes, std::int64_t stride,
                       bool bottleneck) {
  const auto layer = register_module(name, std::make_shared<torch::nn::Module>());
  for (std::int64_t i = 0; i < blocks; ++i) {
    blocks_.push_back(std::make_shared<Block>(width_, planes, i == 0 ? stride : 1, bottleneck));
    layer->register_module(std::to_string(i), blocks_.back());
    width_ = bottleneck ? 4 * planes : planes;
  }
}

at::Tensor ResNet::forward(const at::Tensor& images) {
  at::Tensor x = bn1_->forward(conv1_->forward(images.contiguous(at::MemoryFormat::ChannelsLast))).relu_();
  x = at::max_pool2d(x, 3, 2, 1);
  for (const auto& block : blocks_) x = call_layer(block, x, checkpoint_);
  return fc_->forward(at::adaptive_avg_pool2d(x, {1, 1}).flatten(1));
}

std::shared_ptr<ResNet> resnet18(const ResNetOptions& options) {
  return std::make_shared<ResNet>(ResNetLayout{.blocks = {2, 2, 2, 2}}, options);
}

std::shared_ptr<ResNet> resnet34(const ResNetOptions& options) {
  return std::make_shared<ResNet>(ResNetLayout{.blocks = {3, 4, 6, 3}}, options);
}

std::shared_ptr<ResNet> resnet50(const ResNetOptions& options) {
  return std::make_shared<ResNet>(ResNetLayout{.blocks = {3, 4, 6, 3}, .bottleneck = true}, options);
}

}  // namespace tandem::models
