#include "net_sizes.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "tandem/core/error.h"
#include "tandem/models/gpt2.h"
#include "tandem/models/vision_transformer.h"

namespace train {
namespace {

constexpr double kFloat = 4;              // bytes
constexpr double kTestImages = 100;       // of a batch of the test set
constexpr double kTestText = 100 * 128;   // bytes of a batch of the validation
constexpr double kMnist = 70'000 * 785.;  // bytes of the images and labels in memory

// Each layer keeps its input; a gradient as wide as the widest is on its way.
NetSizes mlp(const std::vector<std::int64_t>& hidden) {
  NetSizes sizes{.data_bytes = kMnist};
  std::int64_t width = 28 * 28;
  for (const std::int64_t next : hidden) {
    sizes.parameters += (width + 1) * next;
    width = next;
  }
  sizes.parameters += (width + 1) * 10;
  const auto kept = static_cast<double>(std::accumulate(hidden.begin(), hidden.end(), std::int64_t{28 * 28 + 30}));
  const auto widest = static_cast<double>(*std::max_element(hidden.begin(), hidden.end()));
  sizes.training_bytes = kFloat * (kept + widest);
  sizes.evaluation_bytes = kTestImages * kFloat * (28 * 28 + 2 * widest);
  return sizes;
}

NetSizes cnn() {
  return {.parameters = 320 + 18'496 + 9216 * 128 + 128 + 1290,
          .training_bytes = 850e3,
          .evaluation_bytes = kTestImages * 430e3,
          .data_bytes = kMnist};
}

// A block keeps 17 numbers a token and unit of width: both norms' inputs and results, queries, keys, values, what
// attention gives before and after its heads are joined, and the 4-fold hidden layer before and after GELU.
constexpr double kKeptByBlock = 17;

std::int64_t parameters_of_blocks(std::int64_t layers, std::int64_t width) {
  return layers * (12 * width * width + 13 * width);
}

NetSizes gpt(const GptOptions& options, bool gpt2) {
  const auto w = static_cast<double>(options.width);
  const auto layers = static_cast<double>(options.layers);
  const std::int64_t positions = gpt2 ? tandem::models::Gpt2Options{}.positions : options.block_size;
  const std::int64_t embeddings = gpt2 ? 1 : 2;  // scores are made with the same weight
  NetSizes sizes;
  sizes.parameters = parameters_of_blocks(options.layers, options.width) +
                     (embeddings * options.vocabulary + positions + 2) * options.width;
  sizes.training_bytes = kFloat * static_cast<double>(options.block_size) *
                         (kKeptByBlock * w * layers + 2 * w + 3 * static_cast<double>(options.vocabulary));
  const double tokens = std::max(kTestText, static_cast<double>(options.block_size));
  sizes.evaluation_bytes = kFloat * tokens * (12 * w + 2 * static_cast<double>(options.vocabulary));
  return sizes;
}

// Each convolution's result is kept, and that of the norm after it; one more is on its way.
class ResNetSizes {
 public:
  ResNetSizes(const std::array<std::int64_t, 4>& blocks, bool bottleneck) {
    add(1, 64, 7, 2);
    kept_ += 3.0 * 64 * static_cast<double>(halve() * side_);  // with the places of the largest, of 8 bytes
    for (std::size_t i = 0; i < blocks.size(); ++i)
      for (std::int64_t block = 0; block < blocks[i]; ++block)
        add_block(64 << i, block == 0 && i > 0 ? 2 : 1, bottleneck);
    parameters_ += (width_ + 1) * 10;
  }

  NetSizes sizes() const {
    return {.parameters = parameters_,
            .training_bytes = kFloat * (kept_ + 2 * widest_),
            .evaluation_bytes = kTestImages * kFloat * 4 * widest_,
            .data_bytes = kMnist};
  }

 private:
  void add_block(std::int64_t planes, std::int64_t stride, bool bottleneck) {
    const std::int64_t in = width_, out = bottleneck ? 4 * planes : planes;
    if (bottleneck) add(in, planes, 1, 1);
    add(bottleneck ? planes : in, planes, 3, stride);
    add(planes, out, bottleneck ? 1 : 3, 1);
    if (stride != 1 || in != out) add(in, out, 1, 1);  // at the size that the block has by now
  }

  void add(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride) {
    if (stride == 2) halve();
    const auto numbers = static_cast<double>(out * side_ * side_);
    parameters_ += out * (in * kernel * kernel + 2);
    kept_ += 2 * numbers;
    widest_ = std::max(widest_, numbers);
    width_ = out;
  }

  std::int64_t halve() { return side_ = (side_ + 1) / 2; }

  std::int64_t parameters_ = 0, width_ = 64, side_ = 28;
  double kept_ = 0, widest_ = 0;
};

// Of 224 x 224, as MNIST's images do not divide into patches.
NetSizes vit() {
  const tandem::models::VisionTransformerOptions options;
  const std::int64_t side = options.image_size / options.patch_size, tokens = side * side + 1;
  const auto numbers = static_cast<double>(tokens * options.width);
  return {.parameters = parameters_of_blocks(options.layers, options.width) +
                        options.width * (options.patch_size * options.patch_size + 1 + 1 + tokens + 2) +
                        (options.width + 1) * 10,
          .training_bytes = kFloat * numbers * (kKeptByBlock * static_cast<double>(options.layers) + 3),
          .evaluation_bytes = kTestImages * kFloat * numbers * 12,
          .data_bytes = kMnist};
}

}  // namespace

NetSizes sizes_of(const Options& options) {
  switch (options.model) {
    case ModelKind::mlp: return mlp(options.hidden);
    case ModelKind::cnn: return cnn();
    case ModelKind::resnet18: return ResNetSizes({2, 2, 2, 2}, false).sizes();
    case ModelKind::resnet34: return ResNetSizes({3, 4, 6, 3}, false).sizes();
    case ModelKind::resnet50: return ResNetSizes({3, 4, 6, 3}, true).sizes();
    case ModelKind::vit_b_16: return vit();
    case ModelKind::script:
      throw tandem::ConfigError("--model " + options.script +
                                ": the memory of a TorchScript module is not known; save its weights as safetensors, "
                                "and give that file");
    case ModelKind::gpt: return gpt(options.gpt, false);
    case ModelKind::gpt2: return gpt(options.gpt, true);
  }
  return {};
}

}  // namespace train
