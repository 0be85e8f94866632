#include "models.h"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>

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

}  // namespace

torch::nn::Sequential make_model(const Options& options) {
  return options.model == ModelKind::cnn ? make_cnn() : make_mlp(options.hidden);
}

}  // namespace train
