#include "tandem/data/text_dataset.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include <ATen/Functions.h>

#include "backend/lent_threads.h"
#include "core/cgroup_limit.h"
#include "mapped_file.h"
#include "tandem/core/error.h"
#include "tandem/data/detail/fingerprint.h"

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

// llm.c's header, in int32, as its dev/data/data_common.py writes it.
constexpr std::int64_t kHeaderBytes = 256 * sizeof(std::int32_t);
struct HeaderKind {
  std::int32_t magic, version;
  TextTokens tokens;
  const char* of;
};
constexpr std::array kHeaderKinds{HeaderKind{20240520, 1, TextTokens::uint16, "uint16"},
                                  HeaderKind{20240801, 7, TextTokens::uint32, "uint32"}};

// Bytes before the first token.
std::int64_t read_header(const std::string& path, const MappedFile& file, TextTokens tokens) {
  std::array<std::int32_t, 3> header{};  // magic, version, number of tokens
  std::memcpy(header.data(), file.data(), static_cast<std::size_t>(std::min<std::int64_t>(file.size(), sizeof header)));
  const auto* kind =
      std::find_if(kHeaderKinds.begin(), kHeaderKinds.end(), [&](const auto& k) { return k.magic == header[0]; });
  if (kind == kHeaderKinds.end()) return 0;
  const auto fail = [&](const std::string& problem) {
    throw DataError(path + ": has llm.c's header of " + kind->of + " tokens (magic " + std::to_string(kind->magic) +
                    "), " + problem);
  };
  if (kind->tokens != tokens) fail("and is to be read as something else; read it as " + std::string(kind->of));
  if (file.size() < kHeaderBytes)
    fail("but ends after " + std::to_string(file.size()) + " of its " + std::to_string(kHeaderBytes) + " bytes");
  if (header[1] != kind->version)
    fail("whose field version is " + std::to_string(header[1]) + "; only " + std::to_string(kind->version) +
         " is known");
  const std::int64_t bytes = file.size() - kHeaderBytes, size = token_bytes(tokens);
  if (bytes != header[2] * size)
    fail("whose number of tokens is " + std::to_string(header[2]) + ", but " + std::to_string(bytes) +
         " bytes follow, of " + std::to_string(bytes / size) + " tokens; is it cut off?");
  return kHeaderBytes;
}

std::int64_t count_tokens(const std::string& path, std::int64_t file_bytes, std::int64_t token_size) {
  if (file_bytes % token_size != 0)
    throw DataError(path + ": has " + std::to_string(file_bytes) + " bytes, no multiple of the " +
                    std::to_string(token_size) + " bytes of a token; is it a file of other tokens, or cut off?");
  return file_bytes / token_size;
}

std::size_t count_samples(const std::string& path, std::int64_t tokens, std::int64_t block_size, std::int64_t stride) {
  if (tokens <= block_size)
    throw DataError(path + ": has " + std::to_string(tokens) + " tokens, too few for a sample of " +
                    std::to_string(block_size) + " and the one after; use a block_size of less than " +
                    std::to_string(tokens));
  return static_cast<std::size_t>((tokens - 1 - block_size) / stride + 1);
}

constexpr std::int64_t kPart = 1 << 22;  // tokens that a thread looks at in one go

// The first of these tokens that is `vocabulary` or more; nothing: none is.
template <class Token>
std::optional<std::int64_t> first_beyond(const Token* tokens, std::int64_t count, std::int64_t vocabulary) {
  std::atomic<std::int64_t> next = 0, part = std::numeric_limits<std::int64_t>::max();
  const std::int64_t parts = (count + kPart - 1) / kPart;
  const auto end_of = [&](std::int64_t i) { return tokens + std::min((i + 1) * kPart, count); };
  const auto look = [&] {
    for (std::int64_t i = next++; i < parts && i < part; i = next++) {
      const Token* const end = end_of(i);
      Token largest = 0;
      for (const Token* token = tokens + i * kPart; token != end; ++token) largest = std::max(largest, *token);
      if (largest < vocabulary) continue;
      for (std::int64_t found = part; i < found && !part.compare_exchange_weak(found, i);) {
      }
    }
  };
  {
    std::optional<LentThreads> helpers;
    const auto most = static_cast<int>(std::min<std::int64_t>(parts, usable_cores())) - 1;
    if (most > 0) helpers.emplace(most, "tokens", 1, look);
    for (int i = 0; i < most; ++i) helpers->call();
    look();
  }
  if (part >= parts) return {};
  return std::find_if(tokens + part * kPart, end_of(part), [&](Token token) { return token >= vocabulary; }) - tokens;
}

// Whether these are uint32 of which each was taken for two tokens.
bool look_like_halves(const std::uint16_t* tokens, std::int64_t count) {
  constexpr std::int64_t kFew = 64, kMany = 4096;
  bool any = false;
  for (std::int64_t i = 0; i < std::min(count, kMany); ++i) {
    if (i % 2 == 1 && tokens[i] != 0) return false;
    any = any || tokens[i] != 0;
  }
  return any && count >= kFew;
}

template <class Token>
void check_ids(const std::string& path, const char* first, std::int64_t count, std::int64_t vocabulary) {
  const auto* const tokens = reinterpret_cast<const Token*>(first);
  if constexpr (std::is_same_v<Token, std::uint16_t>)
    if (look_like_halves(tokens, count))
      throw DataError(path + ": every second token is 0, as where uint32 are read as uint16; read it as uint32");
  const auto position = first_beyond(tokens, count, vocabulary);
  if (!position) return;
  const auto id = static_cast<std::int64_t>(tokens[*position]);
  throw DataError(path + ": token " + std::to_string(*position) + " has the id " + std::to_string(id) +
                  ", beyond the vocabulary of " + std::to_string(vocabulary) + " (0 to " +
                  std::to_string(vocabulary - 1) + "); use a vocabulary of " + std::to_string(id + 1) +
                  " or more, or is it a file of other tokens?");
}

}  // namespace

TextDataset::TextDataset(const std::string& path, TextOptions options)
    : tokens_(options.tokens),
      block_size_(positive(options.block_size, "block_size")),
      stride_(positive(options.stride.value_or(block_size_), "stride")) {
  const std::int64_t token_size = token_bytes(tokens_);
  if (options.vocabulary) positive(*options.vocabulary, "vocabulary");
  file_ = std::make_shared<const MappedFile>(path);
  const std::int64_t header = read_header(path, *file_, tokens_);
  first_ = static_cast<const char*>(file_->data()) + header;
  count_ = count_tokens(path, file_->size() - header, token_size);
  size_ = count_samples(path, count_, block_size_, stride_);
  if (!options.vocabulary) return;
  switch (tokens_) {
    case TextTokens::bytes: check_ids<std::uint8_t>(path, first_, count_, *options.vocabulary); break;
    case TextTokens::uint16: check_ids<std::uint16_t>(path, first_, count_, *options.vocabulary); break;
    case TextTokens::uint32: check_ids<std::uint32_t>(path, first_, count_, *options.vocabulary); break;
  }
}

std::uint64_t TextDataset::fingerprint() { return detail::fingerprint_of_some(*this); }

template <class Token>
void TextDataset::copy_windows(c10::ArrayRef<std::size_t> indices, std::int64_t* inputs, std::int64_t* targets) const {
  const auto* tokens = reinterpret_cast<const Token*>(first_);
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
