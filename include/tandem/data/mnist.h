#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

namespace tandem::data {

/// The two parts of MNIST.
enum class MnistSplit {
  train,  ///< train-images-idx3-ubyte[.gz] and train-labels-idx1-ubyte[.gz], 60,000 samples
  test    ///< t10k-images-idx3-ubyte[.gz] and t10k-labels-idx1-ubyte[.gz], 10,000 samples
};

/// What a pixel value v in 0 .. 255 becomes.
enum class MnistNormalize {
  mnist,  ///< (v / 255 - 0.1307) / 0.3081, mean 0 and deviation 1 over the training set
  none    ///< v / 255
};

/// Which samples of MNIST, and as which numbers.
struct MnistOptions {
  MnistSplit split = MnistSplit::train;              ///< which part
  MnistNormalize normalize = MnistNormalize::mnist;  ///< what pixels become
  std::optional<std::int64_t> limit = {};            ///< use the first samples only
};

/// MNIST in memory, one byte a pixel; pixels become numbers when a batch is made. Copies share the data, so that one
/// copy serves all ranks. A batch is {images float32 [B, 1, 28, 28], labels int64 [B]}.
class MnistDataset : public torch::data::datasets::BatchDataset<MnistDataset, torch::data::Example<>> {
 public:
  /// Reads `directory`. Throws DataError naming the file and what is wrong with it, ConfigError when the limit is not
  /// positive.
  explicit MnistDataset(const std::string& directory, MnistOptions options = {});

  /// The samples with these indices. Throws DataError when one is out of range.
  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override;

  /// How many samples there are.
  std::optional<std::size_t> size() const override { return size_; }

  /// Of some of them: see HasFingerprint.
  std::uint64_t fingerprint();

 private:
  std::shared_ptr<const std::vector<std::uint8_t>> labels_;
  std::shared_ptr<const std::uint8_t[]> pixels_;  // [size, 28, 28]
  std::size_t size_ = 0;
  std::array<float, 256> value_of_pixel_;
};

/// MnistDataset by the name that reads well in a loader.
inline MnistDataset mnist(const std::string& directory, MnistOptions options = {}) {
  return MnistDataset(directory, options);
}

}  // namespace tandem::data
