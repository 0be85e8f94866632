#include "tandem/data/text_dataset.h"

#include <filesystem>
#include <fstream>
#include <numeric>

#include <torch/types.h>

#include "support/catch.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"

using namespace tandem;
using data::TextDataset;
using data::TextTokens;
using tandem::test::TempDir;

namespace {

// A file of `tokens`, each of `token_bytes` bytes, lowest first.
struct TokenFile {
  TempDir dir;
  std::string path = dir / "tokens.bin";

  TokenFile(const std::vector<std::uint32_t>& tokens, int token_bytes) {
    std::ofstream file(path, std::ios::binary);
    for (std::uint32_t token : tokens)
      for (int byte = 0; byte < token_bytes; ++byte) file.put(static_cast<char>(token >> (8 * byte)));
  }
};

std::vector<std::uint32_t> counting(std::uint32_t count) {
  std::vector<std::uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 0u);
  return tokens;
}

}  // namespace

TEST_CASE("a sample of text is a window, its targets the window one token later") {
  const TokenFile file(counting(12), 1);
  TextDataset text(file.path, {.block_size = 4});
  CHECK(text.size() == 2u);
  const auto batch = text.get_batch(std::vector<std::size_t>{1, 0});
  CHECK(at::equal(batch.data, at::tensor({4, 5, 6, 7, 0, 1, 2, 3}, at::kLong).view({2, 4})));
  CHECK(at::equal(batch.target, batch.data + 1));
}

TEST_CASE("windows begin a stride apart and all lie within the file, whatever its length") {
  for (std::uint32_t count = 2; count < 40; ++count) {
    const TokenFile file(counting(count), 1);
    for (std::int64_t block : {1, 2, 3, 7}) {
      if (count <= block) continue;
      CHECK(TextDataset(file.path, {.block_size = block}).size() == (count - 1) / block);
      for (std::int64_t stride : {1, 2, 5, 50}) {
        std::vector<std::size_t> all;
        for (std::int64_t begin = 0; begin + block + 1 <= count; begin += stride) all.push_back(all.size());
        TextDataset text(file.path, {.block_size = block, .stride = stride});
        REQUIRE(text.size() == all.size());
        const auto beginnings = at::arange(static_cast<std::int64_t>(all.size())).mul(stride).unsqueeze(1);
        const auto batch = text.get_batch(all);
        CHECK(at::equal(batch.data, beginnings + at::arange(block)));
        CHECK(at::equal(batch.target, beginnings + at::arange(block) + 1));
      }
    }
  }
}

TEST_CASE("token ids of each size keep their value") {
  const std::vector<std::size_t> first{0};
  const TokenFile bytes({0, 255, 128}, 1), words({0, 65535, 258}, 2), longs({0, 4294967295u, 16909060}, 4);
  CHECK(at::equal(TextDataset(bytes.path, {.block_size = 2}).get_batch(first).target[0],
                  at::tensor(std::vector<std::int64_t>{255, 128})));
  CHECK(at::equal(TextDataset(words.path, {.tokens = TextTokens::uint16, .block_size = 2}).get_batch(first).target[0],
                  at::tensor(std::vector<std::int64_t>{65535, 258})));
  CHECK(at::equal(TextDataset(longs.path, {.tokens = TextTokens::uint32, .block_size = 2}).get_batch(first).target[0],
                  at::tensor(std::vector<std::int64_t>{4294967295, 16909060})));
}

TEST_CASE("copies of a text dataset outlive it and the file's name") {
  const TokenFile file(counting(12), 1);
  std::optional<TextDataset> original(TextDataset(file.path, {.block_size = 4}));
  TextDataset copy = *original;
  original.reset();
  std::filesystem::remove(file.path);
  CHECK(copy.get_batch(std::vector<std::size_t>{1}).data[0][0].item<std::int64_t>() == 4);
}

TEST_CASE("a text file that is missing, empty, too short or of other tokens is an error that names it") {
  TempDir dir;
  CHECK_THROWS_WITH(TextDataset(dir / "nowhere.txt"), ContainsSubstring("nowhere.txt: does not exist"));
  CHECK_THROWS_WITH(TextDataset(dir.path()), ContainsSubstring("is no file"));
  CHECK_THROWS_WITH(TextDataset(TokenFile({}, 1).path), ContainsSubstring("tokens.bin: is empty"));
  const TokenFile eight(counting(8), 1), seven(counting(7), 1);
  CHECK_THROWS_WITH(TextDataset(eight.path, {.block_size = 8}), ContainsSubstring("8 tokens, too few"));
  CHECK(TextDataset(eight.path, {.block_size = 7}).size() == 1u);
  CHECK_THROWS_WITH(TextDataset(seven.path, {.tokens = TextTokens::uint16, .block_size = 2}),
                    ContainsSubstring("7 bytes, no multiple of the 2 bytes"));
  CHECK_THROWS_AS(TextDataset(dir / "nowhere.txt"), DataError);
}

TEST_CASE("block sizes, strides and indices out of range are errors") {
  const TokenFile file(counting(12), 1);
  CHECK_THROWS_AS(TextDataset(file.path, {.block_size = 0}), ConfigError);
  CHECK_THROWS_AS(TextDataset(file.path, {.block_size = 4, .stride = 0}), ConfigError);
  TextDataset text(file.path, {.block_size = 4});
  CHECK_THROWS_WITH(text.get_batch(std::vector<std::size_t>{0, 2}), ContainsSubstring("sample 2 does not exist"));
}
