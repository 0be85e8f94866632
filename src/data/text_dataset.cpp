#include "tandem/data/text_dataset.h"

#include <algorithm>
#include <bit>

#include <ATen/Functions.h>

#include "mapped_file.h"
#include "tandem/core/error.h"

namespace tandem::data {
namespace {

static_assert(std::endian::native == std::endian::little, "token ids are read as they lie in the file");

std::int64_t token_bytes(TextTokens tokens) {
  switch (tokens) {
    case TextTokens::bytes: return 1;
    case TextTokens::uint16: return 2;
    case TextTokens::uint32: return 4;
  }
  throw ConfigError("TextOptions::tokens is no value of TextTokens");
}

std::int64_t positive(std::int64_t value, const char* name) {
  if (value < 1) throw ConfigError(std::string(name) + " is " + std::to_string(value) + "; use 1 or more");
  return value;
}

std::size_t count_samples(const std::string& path, std::int64_t file_bytes, std::int64_t token_size,
                          std::int64_t block_size, std::int64_t stride) {
  if (file_bytes % token_size != 0)
    throw DataError(path + ": has " + std::to_string(file_bytes) + " bytes, no multiple of the " +
                    std::to_string(token_size) + " bytes of a token; is it a file of other tokens, or cut off?");
  const std::int64_t tokens = file_bytes / token_size;
  if (tokens <= block_size)
    throw DataError(path + ": has " + std::to_string(tokens) + " tokens, too few for a sample of " +
                    std::to_string(block_size) + " and the one after; use a block_size of less than " +
                    std::to_string(tokens));
  return static_cast<std::size_t>((tokens - 1 - block_size) / stride + 1);
}

}  // namespace

TextDataset::TextDataset(const std::string& path, TextOptions options)
    : tokens_(options.tokens),
      block_size_(positive(options.block_size, "block_size")),
      stride_(positive(options.stride.value_or(block_size_), "stride")) {
  const std::int64_t token_size = token_bytes(tokens_);
  file_ = std::make_shared<const MappedFile>(path);
  size_ = count_samples(path, file_->size(), token_size, block_size_, stride_);
}

template <class Token>
void TextDataset::copy_windows(c10::ArrayRef<std::size_t> indices, std::int64_t* inputs, std::int64_t* targets) const {
  const Token* tokens = static_cast<const Token*>(file_->data());
  for (std::size_t index : indices) {
    const Token* window = tokens + static_cast<std::int64_t>(index) * stride_;
    inputs = std::copy_n(window, block_size_, inputs);
    targets = std::copy_n(window + 1, block_size_, targets);
  }
}

torch::data::Example<> TextDataset::get_batch(c10::ArrayRef<std::size_t> indices) {
  for (std::size_t index : indices)
    if (index >= size_)
      throw DataError("text sample " + std::to_string(index) + " does not exist; there are " + std::to_string(size_));
  const auto count = static_cast<std::int64_t>(indices.size());
  torch::data::Example<> batch(at::empty({count, block_size_}, at::kLong), at::empty({count, block_size_}, at::kLong));
  auto* inputs = batch.data.mutable_data_ptr<std::int64_t>();
  auto* targets = batch.target.mutable_data_ptr<std::int64_t>();
  switch (tokens_) {
    case TextTokens::bytes: copy_windows<std::uint8_t>(indices, inputs, targets); break;
    case TextTokens::uint16: copy_windows<std::uint16_t>(indices, inputs, targets); break;
    case TextTokens::uint32: copy_windows<std::uint32_t>(indices, inputs, targets); break;
  }
  return batch;
}

}  // namespace tandem::data
