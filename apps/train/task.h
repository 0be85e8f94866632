#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "metrics.h"
#include "net.h"
#include "options.h"
#include "samples.h"

namespace train {

/// What becomes of a picture before the network sees it: its shorter side gets `resize` pixels, the centre is kept, and
/// values v from 0 to 1 become (v - mean) / deviation.
struct PictureFormat {
  /// By channel; none: v stays.
  struct Normalization {
    std::vector<double> mean, deviation;
  };

  std::int64_t channels = 3, size = 224, resize = 224;
  Normalization normalization;
};

/// Data, a network for it, and how the trained network is judged: all that depends on --model and on the data. Made
/// once; the ranks only read it.
class Task {
 public:
  virtual ~Task() = default;

  virtual Samples train_set() const = 0;

  /// Samples that are not trained on.
  virtual Samples test_set() const = 0;

  /// How many of them to a batch.
  virtual std::int64_t test_batch() const { return 100; }

  /// The order of training, instead of shuffling; null: none.
  virtual std::shared_ptr<tandem::data::Sampler> sampler() const { return nullptr; }

  /// The threads that read both sets, where --workers does not say.
  virtual int workers() const { return 0; }

  /// The network, freshly initialised. Its parameters have the names that they have in PyTorch.
  virtual std::shared_ptr<Net> make_net() const = 0;

  /// One sample, or a few, to try a network with.
  Batch example() const { return test_set().read({0}); }

  /// What training makes small: the mean over a batch of one sample or more, of float32 scores.
  virtual at::Tensor loss(const at::Tensor& scores, const at::Tensor& targets) const = 0;

  /// How good the scores of a batch of B samples are, [B, figures], a row for each sample.
  virtual at::Tensor judge(const at::Tensor& scores, const at::Tensor& targets) const = 0;

  /// What the means of these figures over the test set say, which are NaN when the training was interrupted.
  virtual Verdict verdict(const std::vector<double>& means) const = 0;

  /// How many figures there are.
  virtual std::size_t figures() const = 0;

  /// Names of the classes, where samples have labels of one; otherwise empty.
  virtual std::vector<std::string> classes() const { return {}; }

  /// How many samples of each class are trained on; empty where that is not known.
  virtual std::vector<std::int64_t> samples_of_classes() const { return {}; }

  /// How many scores a sample has: its classes, or the numbers to predict.
  virtual std::int64_t outputs() const { return static_cast<std::int64_t>(classes().size()); }

  /// Of the pictures that it is trained on, if it is.
  virtual std::optional<PictureFormat> picture_format() const { return {}; }

  /// What the trained network makes by itself, to be printed; empty for networks that make nothing. Leaves `net` in
  /// evaluation mode.
  virtual std::string sample(Net&) const { return {}; }

  /// A sentence that is another one when other samples are trained on or judged by; empty: not looked at.
  virtual std::string data() const { return {}; }

  /// What of its data is worth knowing before the training, for people; empty: nothing.
  virtual std::string about() const { return {}; }

  /// Why each picture was left out that cannot be read, a sentence that begins with its file.
  virtual std::vector<std::string> left_out() const { return {}; }
};

/// Reads the data that `options` name. Throws tandem::ConfigError that names the flag.
std::unique_ptr<const Task> make_task(const Options& options);

/// The same for MNIST, for folders of pictures, for tables of numbers, and for language models on a text or tokens.
std::unique_ptr<const Task> make_mnist_task(const Options& options);
std::unique_ptr<const Task> make_picture_task(const Options& options);
std::unique_ptr<const Task> make_table_task(const Options& options);
std::unique_ptr<const Task> make_text_task(const Options& options);

}  // namespace train
