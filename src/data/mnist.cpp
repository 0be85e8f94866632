#include "tandem/data/mnist.h"

#include <algorithm>

#include <ATen/Functions.h>

#include "idx_file.h"
#include "tandem/core/error.h"
#include "tandem/data/detail/fingerprint.h"

namespace tandem::data {
namespace {

constexpr std::int64_t kSide = 28;
constexpr std::int64_t kPixels = kSide * kSide;

std::array<float, 256> value_table(MnistNormalize normalize) {
  std::array<float, 256> values;
  for (int pixel = 0; pixel < 256; ++pixel) {
    // In single precision, operation by operation: the very numbers that tensor.div(255).sub(0.1307).div(0.3081) gives.
    float value = static_cast<float>(pixel) / 255.0f;
    if (normalize == MnistNormalize::mnist) {
      value = value - 0.1307f;
      value = value / 0.3081f;
    }
    values[static_cast<std::size_t>(pixel)] = value;
  }
  return values;
}

void check_contents(const IdxFile& images, const IdxFile& labels) {
  if (images.sizes[1] != kSide || images.sizes[2] != kSide)
    throw DataError(images.path + ": has images of " + std::to_string(images.sizes[1]) + " x " +
                    std::to_string(images.sizes[2]) + " pixels instead of 28 x 28");
  if (images.sizes[0] != labels.sizes[0])
    throw DataError(images.path + " has " + std::to_string(images.sizes[0]) + " images, but " + labels.path + " has " +
                    std::to_string(labels.sizes[0]) + " labels; the files do not belong together");
  const std::uint8_t* begin = labels.bytes.get();
  const std::uint8_t* end = begin + labels.items;
  const std::uint8_t* wrong = std::find_if(begin, end, [](std::uint8_t label) { return label > 9; });
  if (wrong != end)
    throw DataError(labels.path + ": label " + std::to_string(wrong - begin) + " is " + std::to_string(*wrong) +
                    "; labels are 0 to 9");
}

}  // namespace

MnistDataset::MnistDataset(const std::string& directory, MnistOptions options)
    : value_of_pixel_(value_table(options.normalize)) {
  if (options.limit && *options.limit < 1)
    throw ConfigError("a limit of " + std::to_string(*options.limit) + " samples; use 1 or more");
  const std::string prefix = options.split == MnistSplit::train ? "train" : "t10k";
  const IdxFile labels = read_idx(directory, prefix + "-labels-idx1-ubyte", 1, options.limit);
  IdxFile images = read_idx(directory, prefix + "-images-idx3-ubyte", 3, options.limit);
  check_contents(images, labels);
  size_ = static_cast<std::size_t>(images.items);
  labels_ = std::make_shared<const std::vector<std::uint8_t>>(labels.bytes.get(), labels.bytes.get() + labels.items);
  pixels_ = std::move(images.bytes);
}

std::uint64_t MnistDataset::fingerprint() { return detail::fingerprint_of_some(*this); }

torch::data::Example<> MnistDataset::get_batch(c10::ArrayRef<std::size_t> indices) {
  const auto count = static_cast<std::int64_t>(indices.size());
  at::Tensor images = at::empty({count, 1, kSide, kSide}, at::kFloat);
  at::Tensor labels = at::empty({count}, at::kLong);
  float* image = images.mutable_data_ptr<float>();
  auto* label = labels.mutable_data_ptr<std::int64_t>();
  for (std::size_t index : indices) {
    if (index >= size_)
      throw DataError("MNIST sample " + std::to_string(index) + " does not exist; there are " + std::to_string(size_));
    const std::uint8_t* pixels = pixels_.get() + static_cast<std::int64_t>(index) * kPixels;
    for (std::int64_t i = 0; i < kPixels; ++i) image[i] = value_of_pixel_[pixels[i]];
    image += kPixels;
    *label++ = (*labels_)[index];
  }
  return {images, labels};
}

}  // namespace tandem::data
