#include "net_sizes.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "model_flags.h"
#include "tandem/core/error.h"
#include "tandem/models/gpt2.h"
#include "tandem/models/vision_transformer.h"

namespace train {
namespace {

constexpr double kFloat = 4;                        // bytes
constexpr std::int64_t kTestImages = 100;           // of a batch of the test set
constexpr std::int64_t kTestPictures = 32;          // the same of pictures in folders
constexpr std::int64_t kJudgedBytes = 32 * 128;     // of a batch of the validation
constexpr std::int64_t kJudgedScores = 64'000'000;  // of a batch of it at most
constexpr double kMnist = 70'000 * 785.;            // bytes of the images and labels in memory

using tandem::models::ImageShape;

std::int64_t numbers_of(const ImageShape& image) { return image.channels * image.size * image.size; }

// Each layer keeps its input; a gradient as wide as the widest is on its way.
NetSizes mlp_sizes(const std::vector<std::int64_t>& hidden, const ImageShape& image) {
  NetSizes sizes;
  const std::int64_t inputs = numbers_of(image);
  std::int64_t width = inputs;
  for (const std::int64_t next : hidden) {
    sizes.parameters += (width + 1) * next;
    width = next;
  }
  sizes.parameters += (width + 1) * image.classes;
  const auto kept = static_cast<double>(std::accumulate(hidden.begin(), hidden.end(), inputs + 3 * image.classes));
  const auto widest = static_cast<double>(*std::max_element(hidden.begin(), hidden.end()));
  sizes.training_bytes = kFloat * (kept + widest);
  sizes.evaluation_bytes = kFloat * (static_cast<double>(inputs) + 2 * widest);
  return sizes;
}

NetSizes cnn_sizes(const ImageShape& image) {
  const std::int64_t side = (image.size - 4) / 2;  // after two convolutions and the pooling
  const double area = static_cast<double>(side * side) / (12 * 12);
  return {.parameters = 32 * (9 * image.channels + 1) + 18'496 + (64 * side * side + 1) * 128 + 129 * image.classes,
          .training_bytes = 850e3 * area,
          .evaluation_bytes = 430e3 * area};
}

// A block keeps 17 numbers a token and unit of width: both norms' inputs and results, queries, keys, values, what
// attention gives before and after its heads are joined, and the 4-fold hidden layer before and after GELU.
constexpr double kKeptByBlock = 17;

std::int64_t parameters_of_blocks(std::int64_t layers, std::int64_t width) {
  return layers * (12 * width * width + 13 * width);
}

// By so many blocks, in widths. Where they are computed again, each keeps its input, and one all.
double kept_by(double layers, bool checkpoint) { return checkpoint ? layers + kKeptByBlock : kKeptByBlock * layers; }

NetSizes gpt(const GptOptions& options, bool gpt2, bool checkpoint) {
  const auto w = static_cast<double>(options.width);
  const auto layers = static_cast<double>(options.layers);
  const std::int64_t positions = gpt2 ? tandem::models::Gpt2Options{}.positions : options.block_size;
  const std::int64_t embeddings = gpt2 ? 1 : 2;  // scores are made with the same weight
  NetSizes sizes;
  sizes.parameters = parameters_of_blocks(options.layers, options.width) +
                     (embeddings * options.vocabulary + positions + 2) * options.width;
  sizes.training_bytes = kFloat * static_cast<double>(options.block_size) *
                         (kept_by(layers, checkpoint) * w + 2 * w + 3 * static_cast<double>(options.vocabulary));
  const auto tokens = static_cast<double>(std::max(judged_tokens(options.vocabulary), options.block_size));
  sizes.judged = std::max<std::int64_t>(judged_tokens(options.vocabulary) / options.block_size, 1);
  sizes.evaluation_bytes = kFloat * tokens * (12 * w + 2 * static_cast<double>(options.vocabulary));
  return sizes;
}

// Each convolution's result is kept, and that of the norm after it. Where blocks are computed again, each keeps its
// input, and one all. Gradients are as wide as the first layers in the end, when the memory of smaller ones is of no
// use to them. Judged, the first layer has its input and two results, and a block's end four, with those of the way
// around it.
class ResNetSizes {
 public:
  ResNetSizes(const std::array<std::int64_t, 4>& blocks, bool bottleneck, const ImageShape& image, bool checkpoint)
      : side_(image.size), checkpoint_(checkpoint) {
    add(image.channels, 64, 7, 2);
    judged_ = 2 * widest_ + static_cast<double>(numbers_of(image));
    kept_ += 3.0 * 64 * static_cast<double>(halve() * side_);  // with the places of the largest, of 8 bytes
    for (std::size_t i = 0; i < blocks.size(); ++i)
      for (std::int64_t block = 0; block < blocks[i]; ++block)
        add_block(64 << i, block == 0 && i > 0 ? 2 : 1, bottleneck);
    parameters_ += (width_ + 1) * image.classes;
  }

  NetSizes sizes() const {
    return {.parameters = parameters_,
            .training_bytes = kFloat * (kept_ + largest_block_ + kGradients * widest_),
            .evaluation_bytes = kFloat * judged_};
  }

 private:
  void add_block(std::int64_t planes, std::int64_t stride, bool bottleneck) {
    const double kept_before = kept_, input = static_cast<double>(width_ * side_ * side_);
    const std::int64_t in = width_, out = bottleneck ? 4 * planes : planes;
    if (bottleneck) add(in, planes, 1, 1);
    add(bottleneck ? planes : in, planes, 3, stride);
    add(planes, out, bottleneck ? 1 : 3, 1);
    if (stride != 1 || in != out) add(in, out, 1, 1);  // at the size that the block has by now
    judged_ = std::max(judged_, 4 * static_cast<double>(width_ * side_ * side_));
    if (!checkpoint_) return;
    largest_block_ = std::max(largest_block_, kept_ - kept_before);
    kept_ = kept_before + input;
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

  static constexpr double kGradients = 4.5;  // measured: of the relu, the norm and the pooling, and more than one each

  std::int64_t parameters_ = 0, width_ = 64, side_;
  bool checkpoint_;
  double kept_ = 0, widest_ = 0, largest_block_ = 0, judged_ = 0;
};

NetSizes vit(const ImageShape& image, bool checkpoint) {
  const tandem::models::VisionTransformerOptions options;
  const std::int64_t patch = options.patch_size, side = image.size / patch, tokens = side * side + 1;
  const auto numbers = static_cast<double>(tokens * options.width);
  return {.parameters = parameters_of_blocks(options.layers, options.width) +
                        options.width * (image.channels * patch * patch + 1 + 1 + tokens + 2) +
                        (options.width + 1) * image.classes,
          .training_bytes = kFloat * numbers * (kept_by(static_cast<double>(options.layers), checkpoint) + 3),
          .evaluation_bytes = kFloat * numbers * 12};
}

// Of a network for images; of evaluation those of one sample.
NetSizes image_net(const Options& options, const ImageShape& image) {
  const bool checkpoint = options.checkpoint_activations;
  switch (options.model) {
    case ModelKind::mlp: return mlp_sizes(options.hidden, image);
    case ModelKind::cnn: return cnn_sizes(image);
    case ModelKind::resnet18: return ResNetSizes({2, 2, 2, 2}, false, image, checkpoint).sizes();
    case ModelKind::resnet34: return ResNetSizes({3, 4, 6, 3}, false, image, checkpoint).sizes();
    case ModelKind::resnet50: return ResNetSizes({3, 4, 6, 3}, true, image, checkpoint).sizes();
    case ModelKind::vit_b_16: return vit(image, checkpoint);
    default: break;
  }
  throw tandem::ConfigError("--model " + options.script +
                            ": the memory of a TorchScript module is not known; save its weights as safetensors, and "
                            "give that file");
}

}  // namespace

std::int64_t judged_tokens(std::int64_t vocabulary) { return std::min(kJudgedBytes, kJudgedScores / vocabulary); }

NetSizes sizes_of(const Options& options, const std::optional<ImageShape>& images) {
  if (is_text_model(options.model))
    return gpt(options.gpt, options.model == ModelKind::gpt2, options.checkpoint_activations);
  ImageShape shape = images.value_or(ImageShape{});
  if (!images && options.model == ModelKind::vit_b_16) shape.size = 224;  // MNIST's do not divide into patches
  NetSizes sizes = image_net(options, shape);
  sizes.judged = images ? kTestPictures : kTestImages;
  sizes.evaluation_bytes *= static_cast<double>(sizes.judged);
  if (!images) sizes.data_bytes = kMnist;
  return sizes;
}

}  // namespace train
