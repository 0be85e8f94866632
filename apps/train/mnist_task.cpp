// Networks for images on MNIST's digits.
#include <future>
#include <numeric>

#include "classification.h"
#include "make_net.h"
#include "tandem/core/error.h"

namespace train {
namespace {

using tandem::data::MnistDataset;
using tandem::data::MnistNormalize;
using tandem::data::MnistSplit;

MnistDataset read(const DataOptions& options, MnistSplit split, std::optional<std::int64_t> limit) {
  const auto normalize = options.normalize == Normalize::none ? MnistNormalize::none : MnistNormalize::mnist;
  try {
    return tandem::data::mnist(options.dir, {.split = split, .normalize = normalize, .limit = limit});
  } catch (const tandem::DataError& error) {
    throw tandem::ConfigError(std::string("--data-dir: ") + error.what());
  }
}

constexpr std::int64_t kFew = 100;

const std::vector<std::string> kDigits{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};

class MnistTask : public Classification {
 public:
  MnistTask(const Options& options, MnistDataset train_set, MnistDataset test_set)
      : Classification(kDigits, "test", options.label_smoothing),
        options_(options),
        train_set_(std::move(train_set)),
        test_set_(std::move(test_set)) {}

  Samples train_set() const override { return Samples(train_set_); }
  Samples test_set() const override { return Samples(test_set_); }
  std::shared_ptr<Net> make_net() const override { return make_image_net(options_); }

  std::string data() const override { return "the digits of MNIST"; }

  // Only a part of them may lack some.
  std::vector<std::int64_t> samples_of_classes() const override {
    if (!options_.data.limit || *options_.data.limit > kFew) return {};
    std::vector<std::size_t> all(*train_set_.size());
    std::iota(all.begin(), all.end(), 0);
    const at::Tensor counts = Samples(train_set_).read(all).target.bincount({}, outputs());
    return {counts.const_data_ptr<std::int64_t>(), counts.const_data_ptr<std::int64_t>() + counts.numel()};
  }

  std::optional<PictureFormat> picture_format() const override {
    PictureFormat format;
    format.channels = 1;
    format.size = format.resize = 28;
    if (options_.data.normalize != Normalize::none) format.normalization = {{0.1307}, {0.3081}};
    return format;
  }

 private:
  const Options options_;
  MnistDataset train_set_, test_set_;
};

}  // namespace

std::unique_ptr<const Task> make_mnist_task(const Options& options) {
  refuse_picture_flags(options.data, "MNIST");
  if (options.data.val_split) throw tandem::ConfigError("--val-split does not go with MNIST, which has test images");
  // Beside the larger set, so that damage is found before training and costs no time.
  auto test_set =
      std::async(std::launch::async, [&options] { return read(options.data, MnistSplit::test, std::nullopt); });
  auto train_set = read(options.data, MnistSplit::train, options.data.limit);
  return std::make_unique<MnistTask>(options, std::move(train_set), test_set.get());
}

}  // namespace train
