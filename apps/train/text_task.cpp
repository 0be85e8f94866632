// gpt and gpt2: the next byte or token of a text, judged by the loss on the text's end or another text.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numbers>
#include <numeric>

#include <torch/nn/functional/loss.h>

#include "make_net.h"
#include "model_flags.h"
#include "net_sizes.h"
#include "printable.h"
#include "tandem/core/error.h"
#include "tandem/data/text_dataset.h"
#include "task.h"
#include "write_text.h"

namespace train {
namespace {

namespace F = torch::nn::functional;
using tandem::data::TextDataset;
using tandem::data::TextTokens;

constexpr const char* kNoText =
    " has bytes of 0, as no text has; if these are token ids, give --tokens uint16 or uint32";

bool has_ids(const Options& options) { return options.data.tokens != TextTokens::bytes; }

// A text of bytes that is too short for `samples` of them, in words of the flags.
void check_length(const Options& options, const std::string& flag, const std::string& path, std::int64_t samples) {
  const std::int64_t block_size = options.gpt.block_size;
  const auto least = static_cast<std::uintmax_t>(samples * block_size + 1);  // with a target for the last
  std::error_code unknown;
  const std::uintmax_t bytes = std::filesystem::file_size(path, unknown);
  if (has_ids(options) || unknown || bytes >= least) return;
  throw tandem::ConfigError(flag + " " + path + ": has " + counted(static_cast<std::int64_t>(bytes), "byte") +
                            ", too few to " + (samples > 1 ? "train on and to judge by" : "be a sample") +
                            "; use at least " + std::to_string(least) + ", or a smaller --block-size than " +
                            std::to_string(block_size));
}

// `samples`: how many it must have.
TextDataset read(const Options& options, const std::string& flag, const std::string& path, std::int64_t samples) {
  if (path.ends_with(".safetensors"))
    throw tandem::ConfigError(flag + " " + path + ": is a table, not a text; use --model mlp, or another file");
  check_length(options, flag, path, samples);
  const std::int64_t block_size = options.gpt.block_size;
  tandem::data::TextOptions text{.tokens = options.data.tokens, .block_size = block_size};
  if (has_ids(options)) text.vocabulary = options.gpt.vocabulary;
  try {
    TextDataset dataset(path, text);
    if (static_cast<std::int64_t>(*dataset.size()) >= samples) return dataset;
    throw tandem::DataError(
        path + ": has " + counted(dataset.tokens(), "token") + ", too few to train on and to judge by; use at least " +
        std::to_string(samples * block_size + 1) + ", or a smaller --block-size than " + std::to_string(block_size));
  } catch (const tandem::DataError& error) {
    throw tandem::ConfigError(flag + ": " + error.what());
  }
}

// Samples of a text from `begin` on.
struct Part {
  TextDataset text;
  std::size_t begin, size;

  Samples samples() const { return Samples(Section(text, begin, size)); }
};

struct Parts {
  Part train, val;
};

Parts read_parts(const Options& options) {
  const DataOptions& data = options.data;
  if (data.file.empty())
    throw tandem::ConfigError("--model " + name_of(options.model) + " needs --data-file TEXT, the text to train on");
  const TextDataset text = read(options, "--data-file", data.file, data.val_file.empty() ? 2 : 1);
  const std::size_t all = *text.size();
  if (!data.val_file.empty()) {
    const TextDataset val = read(options, "--val-file", data.val_file, 1);
    return {.train = {text, 0, all}, .val = {val, 0, *val.size()}};
  }
  constexpr double kRounding = 1e-9;  // so that a tenth of 10 samples is one
  const double share = data.held_out_share() * static_cast<double>(all) + kRounding;
  const std::size_t held_out = std::clamp<std::size_t>(static_cast<std::size_t>(share), 1, all - 1);
  return {.train = {text, 0, all - held_out}, .val = {text, all - held_out, held_out}};
}

class TextTask : public Task {
 public:
  TextTask(const Options& options, Parts parts) : options_(options), parts_(std::move(parts)) {
    std::size_t& trained = parts_.train.size;
    if (options.data.limit) trained = std::min(trained, static_cast<std::size_t>(*options.data.limit));
  }

  Samples train_set() const override { return parts_.train.samples(); }
  Samples test_set() const override { return parts_.val.samples(); }
  std::int64_t test_batch() const override {
    return std::max<std::int64_t>(judged_tokens(options_.gpt.vocabulary) / options_.gpt.block_size, 1);
  }
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
    const double loss = means.front(), bits = loss / std::numbers::ln2, perplexity = std::exp(loss);
    std::array<char, 96> sentence;
    if (has_ids(options_)) {
      std::snprintf(sentence.data(), sentence.size(), "validation loss %.4f, perplexity %.2f", loss, perplexity);
      return {sentence.data(), {{"validation_loss", loss}, {"perplexity", perplexity}}};
    }
    std::snprintf(sentence.data(), sentence.size(), "validation loss %.4f, %.3f bits per byte", loss, bits);
    return {sentence.data(), {{"validation_loss", loss}, {"bits_per_byte", bits}}};
  }

  // Of ids nobody here knows what they stand for.
  std::string sample(Net& net) const override {
    if (has_ids(options_)) return {};
    return printable(write_text(net, options_.gpt.block_size, options_.sample_bytes));
  }

  std::string data() const override {
    return "a text of " + std::to_string(*parts_.train.text.size()) + " pieces, and " +
           std::to_string(parts_.val.size) + " to judge by";
  }

  std::string about() const override {
    if (!has_ids(options_)) return begins_as_text() ? "" : options_.data.file + kNoText;
    const auto tokens = [&](const Part& part) {
      return std::to_string(static_cast<std::int64_t>(part.size) * options_.gpt.block_size);
    };
    return options_.data.file + ": " + tokens(parts_.train) + " tokens to train on, " + tokens(parts_.val) +
           " to judge by, of a vocabulary of " + std::to_string(options_.gpt.vocabulary);
  }

 private:
  bool begins_as_text() const {
    std::vector<std::size_t> first(std::min<std::size_t>(parts_.train.size, 32));
    std::iota(first.begin(), first.end(), 0);
    return !train_set().read(first).data.eq(0).any().item<bool>();
  }

  const Options options_;
  Parts parts_;
};

}  // namespace

std::unique_ptr<const Task> make_text_task(const Options& options) {
  refuse_picture_flags(options.data, "a text");
  return std::make_unique<TextTask>(options, read_parts(options));
}

}  // namespace train
