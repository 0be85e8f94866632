// gpt and gpt2: the next byte of a text, judged by the loss on the text's end.
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <numbers>

#include <torch/nn/functional/loss.h>

#include "make_net.h"
#include "model_flags.h"
#include "printable.h"
#include "tandem/core/error.h"
#include "tandem/data/text_dataset.h"
#include "task.h"
#include "write_text.h"

namespace train {
namespace {

namespace F = torch::nn::functional;
using tandem::data::TextDataset;

constexpr std::size_t kHeldOut = 10;            // one sample in so many, and at least one
constexpr std::int64_t kTestBytes = 100 * 128;  // of a batch of the validation

TextDataset read(const Options& options) {
  const std::string& path = options.data.file;
  const std::int64_t block_size = options.gpt.block_size;
  if (path.empty())
    throw tandem::ConfigError("--model " + name_of(options.model) + " needs --data-file TEXT, the text to train on");
  const auto least = static_cast<std::uintmax_t>(2 * block_size + 1);  // samples to train on and to judge by, a target
  std::error_code unknown;
  const std::uintmax_t bytes = std::filesystem::file_size(path, unknown);
  if (!unknown && bytes < least)
    throw tandem::ConfigError("--data-file " + path + ": has " + std::to_string(bytes) +
                              " bytes, too few to train on and to judge by; use at least " + std::to_string(least) +
                              ", or a smaller --block-size than " + std::to_string(block_size));
  try {
    return TextDataset(path, {.block_size = block_size});
  } catch (const tandem::DataError& error) {
    throw tandem::ConfigError(std::string("--data-file: ") + error.what());
  }
}

class TextTask : public Task {
 public:
  TextTask(const Options& options, TextDataset text)
      : options_(options),
        text_(std::move(text)),
        held_out_(std::max(*text_.size() / kHeldOut, std::size_t{1})),
        trained_(*text_.size() - held_out_) {
    if (options.data.limit) trained_ = std::min(trained_, static_cast<std::size_t>(*options.data.limit));
  }

  Samples train_set() const override { return Samples(Section(text_, 0, trained_)); }
  Samples test_set() const override { return Samples(Section(text_, *text_.size() - held_out_, held_out_)); }
  std::int64_t test_batch() const override { return std::max<std::int64_t>(kTestBytes / options_.gpt.block_size, 1); }
  std::shared_ptr<Net> make_net() const override { return make_text_net(options_); }

  at::Tensor loss(const at::Tensor& scores, const at::Tensor& targets) const override {
    const auto smoothed = F::CrossEntropyFuncOptions().label_smoothing(options_.label_smoothing);
    return F::cross_entropy(scores, targets.view(-1), smoothed);
  }

  at::Tensor judge(const at::Tensor& scores, const at::Tensor& targets) const override {
    const auto each = F::CrossEntropyFuncOptions().reduction(torch::kNone);
    return F::cross_entropy(scores, targets.view(-1), each).view_as(targets).mean(1, /*keepdim=*/true);
  }

  std::size_t figures() const override { return 1; }

  Verdict verdict(const std::vector<double>& means) const override {
    const double loss = means.front(), bits = loss / std::numbers::ln2;  // a target is a byte
    std::array<char, 96> sentence;
    std::snprintf(sentence.data(), sentence.size(), "validation loss %.4f, %.3f bits per byte", loss, bits);
    return {sentence.data(), {{"validation_loss", loss}, {"bits_per_byte", bits}}};
  }

  std::string sample(Net& net) const override {
    return printable(write_text(net, options_.gpt.block_size, options_.sample_bytes));
  }

 private:
  const Options options_;
  TextDataset text_;
  std::size_t held_out_, trained_;
};

}  // namespace

std::unique_ptr<const Task> make_text_task(const Options& options) {
  return std::make_unique<TextTask>(options, read(options));
}

}  // namespace train
