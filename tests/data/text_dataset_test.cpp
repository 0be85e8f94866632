#include "tandem/data/text_dataset.h"

#include <filesystem>
#include <fstream>
#include <map>
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

  // After a header of these int32, filled up with zeros to `header_size` of them.
  TokenFile(const std::vector<std::uint32_t>& tokens, int token_bytes, std::vector<std::uint32_t> header = {},
            std::size_t header_size = 256) {
    if (!header.empty()) header.resize(header_size);
    std::ofstream file(path, std::ios::binary);
    for (std::uint32_t number : header) put(file, number, 4);
    for (std::uint32_t token : tokens) put(file, token, token_bytes);
  }

  static void put(std::ofstream& file, std::uint32_t number, int bytes) {
    for (int byte = 0; byte < bytes; ++byte) file.put(static_cast<char>(number >> (8 * byte)));
  }
};

const std::map<TextTokens, int> kBytes{{TextTokens::bytes, 1}, {TextTokens::uint16, 2}, {TextTokens::uint32, 4}};

std::vector<std::uint32_t> counted_up(std::uint32_t count) {
  std::vector<std::uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 0u);
  return tokens;
}

}  // namespace

TEST_CASE("a sample of text is a window, its targets the window one token later") {
  const TokenFile file(counted_up(12), 1);
  TextDataset text(file.path, {.block_size = 4});
  CHECK(text.size() == 2u);
  const auto batch = text.get_batch(std::vector<std::size_t>{1, 0});
  CHECK(at::equal(batch.data, at::tensor({4, 5, 6, 7, 0, 1, 2, 3}, at::kLong).view({2, 4})));
  CHECK(at::equal(batch.target, batch.data + 1));
}

TEST_CASE("windows begin a stride apart and all lie within the file, whatever its length") {
  for (std::uint32_t count = 2; count < 40; ++count) {
    const TokenFile file(counted_up(count), 1);
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
  const TokenFile file(counted_up(12), 1);
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
  const TokenFile eight(counted_up(8), 1), seven(counted_up(7), 1);
  CHECK_THROWS_WITH(TextDataset(eight.path, {.block_size = 8}), ContainsSubstring("8 tokens, too few"));
  CHECK(TextDataset(eight.path, {.block_size = 7}).size() == 1u);
  CHECK_THROWS_WITH(TextDataset(seven.path, {.tokens = TextTokens::uint16, .block_size = 2}),
                    ContainsSubstring("7 bytes, no multiple of the 2 bytes"));
  CHECK_THROWS_AS(TextDataset(dir / "nowhere.txt"), DataError);
}

TEST_CASE("block sizes, strides and indices out of range are errors") {
  const TokenFile file(counted_up(12), 1);
  CHECK_THROWS_AS(TextDataset(file.path, {.block_size = 0}), ConfigError);
  CHECK_THROWS_AS(TextDataset(file.path, {.block_size = 4, .stride = 0}), ConfigError);
  TextDataset text(file.path, {.block_size = 4});
  CHECK_THROWS_WITH(text.get_batch(std::vector<std::size_t>{0, 2}), ContainsSubstring("sample 2 does not exist"));
}

TEST_CASE("llm.c's headers are left out, and the samples are those without one") {
  for (const auto& [tokens, header] : std::map<TextTokens, std::vector<std::uint32_t>>{
           {TextTokens::uint16, {20240520, 1, 12}}, {TextTokens::uint32, {20240801, 7, 12}}}) {
    const TokenFile with(counted_up(12), kBytes.at(tokens), header), without(counted_up(12), kBytes.at(tokens));
    TextDataset a(with.path, {.tokens = tokens, .block_size = 3}), b(without.path, {.tokens = tokens, .block_size = 3});
    REQUIRE(a.size() == b.size());
    CHECK(a.tokens() == 12);
    const std::vector<std::size_t> all{0, 1, 2};
    CHECK(at::equal(a.get_batch(all).data, b.get_batch(all).data));
    CHECK(at::equal(a.get_batch(all).target, b.get_batch(all).target));
  }
}

TEST_CASE("a header of llm.c's that does not fit its file is an error that names file and field") {
  struct Case {
    TextTokens tokens;
    int token_bytes;
    std::vector<std::uint32_t> header;
    std::size_t header_size;
    std::string words;
  };
  using enum TextTokens;
  for (const Case& c : std::vector<Case>{
           {uint16, 2, {20240520, 2, 12}, 256, "field version is 2; only 1"},
           {uint16, 2, {20240520, 0, 12}, 256, "field version is 0"},
           {uint16, 2, {20240520, 1, 11}, 256, "number of tokens is 11, but 24 bytes follow, of 12 tokens"},
           {uint16, 2, {20240520, 1, 13}, 256, "number of tokens is 13"},
           {uint16, 2, {20240520, 1, 0xffffffff}, 256, "number of tokens is -1"},
           {uint16, 1, {20240520, 1, 12}, 256, "number of tokens is 12, but 12 bytes follow"},
           {uint16, 2, {20240520, 1, 12}, 100, "ends after 424 of its 1024 bytes"},
           {bytes, 2, {20240520, 1, 12}, 256, "header of uint16 tokens (magic 20240520), and is to be read"},
           {uint32, 4, {20240520, 1, 12}, 256, "read it as uint16"},
           {uint16, 2, {20240801, 7, 12}, 256, "read it as uint32"},
           {uint32, 4, {20240801, 1, 12}, 256, "field version is 1; only 7"}}) {
    const TokenFile file(counted_up(12), c.token_bytes, c.header, c.header_size);
    CHECK_THROWS_WITH((TextDataset(file.path, {.tokens = c.tokens, .block_size = 3})),
                      ContainsSubstring(file.path) && ContainsSubstring(c.words));
  }
}

TEST_CASE("an id beyond the vocabulary is an error that names the first one and its place, in files of any length") {
  for (const auto& [tokens, size] : kBytes) {
    for (const std::size_t count : {10, 9'000'000}) {
      if (count > 10 && tokens != TextTokens::uint16) continue;
      std::vector<std::uint32_t> ids(count, 7);
      for (const std::size_t place : {std::size_t{0}, count / 2, count - 1}) {
        ids[place] = 100;
        const TokenFile file(ids, size);
        const data::TextOptions options{.tokens = tokens, .block_size = 2, .vocabulary = 101};
        CHECK_NOTHROW(TextDataset(file.path, options));
        ids[count - 1] = 200;
        const TokenFile wrong(ids, size);
        const std::string first =
            std::to_string(count - 1) + " has the id 200, beyond the vocabulary of 101 (0 to 100)";
        CHECK_THROWS_WITH(TextDataset(wrong.path, options),
                          ContainsSubstring(wrong.path) && ContainsSubstring("token " + first));
        const data::TextOptions smaller{.tokens = tokens, .block_size = 2, .vocabulary = 100};
        const std::string id = place == count - 1 ? "200" : "100";
        CHECK_THROWS_WITH(TextDataset(wrong.path, smaller),
                          ContainsSubstring("token " + std::to_string(place) + " has the id " + id));
        ids[count - 1] = ids[place] = 7;
        if (count > 10) break;
      }
    }
  }
  const TokenFile file(counted_up(12), 1);
  CHECK_THROWS_AS(TextDataset(file.path, {.block_size = 4, .vocabulary = 0}), ConfigError);
  CHECK_NOTHROW(TextDataset(file.path, {.block_size = 4}));
}

TEST_CASE("uint32 that are read as uint16 are recognised where ids are checked") {
  std::vector<std::uint32_t> ids = counted_up(50);
  const TokenFile file(ids, 4), zeros(std::vector<std::uint32_t>(50), 4);
  CHECK_THROWS_WITH((TextDataset(file.path, {.tokens = TextTokens::uint16, .block_size = 4, .vocabulary = 60})),
                    ContainsSubstring(file.path) && ContainsSubstring("every second token is 0"));
  CHECK_NOTHROW(TextDataset(zeros.path, {.tokens = TextTokens::uint16, .block_size = 4, .vocabulary = 60}));
}
