#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

#include "metrics.h"
#include "net.h"
#include "options.h"

namespace train {

/// Consecutive samples of a dataset that gives batches of {inputs, targets}, whatever its type. Copies share it.
class Samples : public torch::data::datasets::BatchDataset<Samples, torch::data::Example<>> {
 public:
  template <class Dataset>
  Samples(Dataset dataset, std::size_t begin, std::size_t size)
      : read_([shared = std::make_shared<Dataset>(std::move(dataset))](c10::ArrayRef<std::size_t> indices) {
          return shared->get_batch(indices);
        }),
        begin_(begin),
        size_(size) {}

  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override {
    std::vector<std::size_t> shifted(indices.begin(), indices.end());
    for (std::size_t& index : shifted) index += begin_;
    return read_(shifted);
  }

  std::optional<std::size_t> size() const override { return size_; }

 private:
  std::function<torch::data::Example<>(c10::ArrayRef<std::size_t>)> read_;
  std::size_t begin_, size_;
};

/// Data, a network for it, and how the trained network is judged: all that depends on --model. Made once; the ranks
/// only read it. The loss is always the mean cross-entropy of the scores.
class Task {
 public:
  virtual ~Task() = default;

  virtual Samples train_set() const = 0;

  /// Samples that are not trained on.
  virtual Samples test_set() const = 0;

  /// How many of them to a batch.
  virtual std::int64_t test_batch() const { return 100; }

  /// The network, freshly initialised. Its parameters have the names that they have in PyTorch.
  virtual std::shared_ptr<Net> make_net() const = 0;

  /// How good the scores of a batch of B samples are, [B], one number a sample.
  virtual at::Tensor judge(const at::Tensor& scores, const at::Tensor& targets) const = 0;

  /// What the mean of these numbers over the test set says; NaN when the training was interrupted.
  virtual Verdict verdict(double mean) const = 0;

  /// Names of the classes, where samples have labels of one; otherwise empty.
  virtual std::vector<std::string> classes() const { return {}; }

  /// What the trained network makes by itself, to be printed; empty for networks that make nothing. Leaves `net` in
  /// evaluation mode.
  virtual std::string sample(Net&) const { return {}; }
};

/// Reads the data that `options` name. Throws tandem::ConfigError that names the flag.
std::unique_ptr<const Task> make_task(const Options& options);

/// The same for networks of images, on MNIST, and for language models, on a text.
std::unique_ptr<const Task> make_image_task(const Options& options);
std::unique_ptr<const Task> make_text_task(const Options& options);

}  // namespace train
