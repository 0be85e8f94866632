// Networks for images: digits of MNIST, judged by accuracy.
#include <array>
#include <cstdio>
#include <future>

#include "make_net.h"
#include "tandem/core/error.h"
#include "task.h"

namespace train {
namespace {

using tandem::data::MnistDataset;
using tandem::data::MnistSplit;

MnistDataset read(const Options& options, MnistSplit split, std::optional<std::int64_t> limit) {
  try {
    return tandem::data::mnist(options.data_dir, {.split = split, .normalize = options.normalize, .limit = limit});
  } catch (const tandem::DataError& error) {
    throw tandem::ConfigError(std::string("--data-dir: ") + error.what());
  }
}

Samples all_of(const MnistDataset& dataset) { return Samples(dataset, 0, *dataset.size()); }

class ImageTask : public Task {
 public:
  ImageTask(const Options& options, MnistDataset train_set, MnistDataset test_set)
      : options_(options), train_set_(std::move(train_set)), test_set_(std::move(test_set)) {}

  Samples train_set() const override { return all_of(train_set_); }
  Samples test_set() const override { return all_of(test_set_); }

  std::shared_ptr<Net> make_net() const override { return make_image_net(options_); }

  at::Tensor judge(const at::Tensor& scores, const at::Tensor& labels) const override {
    return scores.argmax(1).eq(labels);
  }

  Verdict verdict(double accuracy) const override {
    std::array<char, 64> sentence;
    std::snprintf(sentence.data(), sentence.size(), "test accuracy %.2f %%", accuracy * 100);
    return {sentence.data(), {{"accuracy", accuracy}}};
  }

  std::vector<std::string> classes() const override { return {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}; }

 private:
  const Options options_;
  MnistDataset train_set_, test_set_;
};

}  // namespace

std::unique_ptr<const Task> make_image_task(const Options& options) {
  // Beside the larger set, so that damage is found before training and costs no time.
  auto test_set = std::async(std::launch::async, [&options] { return read(options, MnistSplit::test, std::nullopt); });
  auto train_set = read(options, MnistSplit::train, options.limit_train_samples);
  return std::make_unique<ImageTask>(options, std::move(train_set), test_set.get());
}

}  // namespace train
