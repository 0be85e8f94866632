#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

namespace tandem::data {

class MappedFile;

/// What the file of a TextDataset is a row of.
enum class TextTokens {
  bytes,   ///< each byte is a token, 0 to 255: any text as it is
  uint16,  ///< token ids of two bytes, little-endian, as for vocabularies of up to 65,536
  uint32   ///< token ids of four bytes, little-endian
};

/// How a file is divided into samples.
struct TextOptions {
  TextTokens tokens = TextTokens::bytes;    ///< what the file has
  std::int64_t block_size = 1024;           ///< tokens of a sample
  std::optional<std::int64_t> stride = {};  ///< tokens from one sample's beginning to the next's; default: block_size
  /// How many ids there are: all of the file's are checked to be less, which reads it once. Nothing: they are not.
  std::optional<std::int64_t> vocabulary = {};
};

/// A file of tokens as samples for predicting the next token: sample i is a window of block_size tokens that begins at
/// token i * stride, and its targets are the same window one token later. What is left at the end is not used, so n
/// tokens give (n - 1 - block_size) / stride + 1 samples.
///
/// The header of llm.c's files (256 int32: magic 20240520, version 1, the number of tokens, for uint16; or magic
/// 20240801 and version 7 for uint32) is recognised and left out.
///
/// The file is mapped, not read: it takes no memory but the system's file cache, which all copies and all ranks share.
/// It must not shrink meanwhile. A batch is {inputs int64 [B, block_size], targets int64 [B, block_size]}.
class TextDataset : public torch::data::datasets::BatchDataset<TextDataset, torch::data::Example<>> {
 public:
  /// Maps the file. Throws DataError naming it when it is missing, empty, no multiple of the token's size or shorter
  /// than one sample, when its header is of other tokens, another version or another number of them, or when an id is
  /// beyond the vocabulary; ConfigError when block_size, stride or vocabulary is not positive.
  explicit TextDataset(const std::string& path, TextOptions options = {});

  /// The samples with these indices. Throws DataError when one is out of range.
  torch::data::Example<> get_batch(c10::ArrayRef<std::size_t> indices) override;

  /// How many windows there are.
  std::optional<std::size_t> size() const override { return size_; }

  /// Of some of the windows: see HasFingerprint.
  std::uint64_t fingerprint();

  /// How many tokens the file has, without a header.
  std::int64_t tokens() const { return count_; }

 private:
  template <class Token>
  void copy_windows(c10::ArrayRef<std::size_t> indices, std::int64_t* inputs, std::int64_t* targets) const;

  std::shared_ptr<const MappedFile> file_;
  TextTokens tokens_;
  std::int64_t block_size_;
  std::int64_t stride_;
  const char* first_;   // token, after a header
  std::int64_t count_;  // of tokens
  std::size_t size_;
};

}  // namespace tandem::data
