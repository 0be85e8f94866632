// gpt: the next byte of a text, judged by the loss on the text's end.
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <numbers>

#include <torch/nn/functional/loss.h>

#include "gpt.h"
#include "tandem/core/error.h"
#include "tandem/data/text_dataset.h"
#include "task.h"

namespace train {
namespace {

using tandem::data::TextDataset;

constexpr std::size_t kHeldOut = 10;                      // one sample in so many, and at least one
constexpr std::uintmax_t kLeastBytes = 2 * kContext + 1;  // a sample to train on, one to judge by, and the last target

TextDataset read(const std::string& path) {
  if (path.empty()) throw tandem::ConfigError("--model gpt needs --text FILE, the text to train on");
  std::error_code unknown;
  const std::uintmax_t bytes = std::filesystem::file_size(path, unknown);
  if (!unknown && bytes < kLeastBytes)
    throw tandem::ConfigError("--text " + path + ": has " + std::to_string(bytes) +
                              " bytes, too few to train on and to judge by; use at least " +
                              std::to_string(kLeastBytes));
  try {
    return TextDataset(path, {.block_size = kContext});
  } catch (const tandem::DataError& error) {
    throw tandem::ConfigError(std::string("--text: ") + error.what());
  }
}

class TextTask : public Task {
 public:
  TextTask(const Options& options, TextDataset text)
      : text_(std::move(text)),
        held_out_(std::max(*text_.size() / kHeldOut, std::size_t{1})),
        trained_(*text_.size() - held_out_) {
    if (options.limit_train_samples)
      trained_ = std::min(trained_, static_cast<std::size_t>(*options.limit_train_samples));
  }

  Samples train_set() const override { return Samples(text_, 0, trained_); }
  Samples test_set() const override { return Samples(text_, *text_.size() - held_out_, held_out_); }
  std::shared_ptr<Net> make_net() const override { return std::make_shared<Gpt>(); }

  at::Tensor judge(const at::Tensor& scores, const at::Tensor& targets) const override {
    namespace F = torch::nn::functional;
    const auto each = F::CrossEntropyFuncOptions().reduction(torch::kNone);
    return F::cross_entropy(scores, targets.view(-1), each).view_as(targets).mean(1);
  }

  Verdict verdict(double loss) const override {
    const double bits = loss / std::numbers::ln2;  // a target is a byte
    std::array<char, 96> sentence;
    std::snprintf(sentence.data(), sentence.size(), "validation loss %.4f, %.3f bits per byte", loss, bits);
    return {sentence.data(), {{"validation_loss", loss}, {"bits_per_byte", bits}}};
  }

 private:
  TextDataset text_;
  std::size_t held_out_, trained_;
};

}  // namespace

std::unique_ptr<const Task> make_text_task(const Options& options) {
  return std::make_unique<TextTask>(options, read(options.text));
}

}  // namespace train
