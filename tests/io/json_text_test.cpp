// Text that is no UTF-8, wherever the library makes JSON of it: refused by file and name where it is read back.
#include "io/json_text.h"

#include <filesystem>
#include <functional>

#include <ATen/Functions.h>
#include <torch/nn/module.h>

#include "support/catch.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/io/model_files.h"
#include "tandem/io/safetensors.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;
using namespace std::string_literals;

namespace {

struct Named : torch::nn::Module {
  explicit Named(const std::string& name) {
    register_parameter("good", at::ones({100}));
    register_parameter(name, at::ones({100}));
  }
};

// No UTF-8: a byte of no character, one that is cut off, one in too many bytes, half of a pair of UTF-16.
const std::vector<std::string> kOdd{"w\xff", "w\xc3", "w\xc0\x80", "w\xed\xa0\x80", "\x80w"};

}  // namespace

TEST_CASE("text is UTF-8 or not, and what is not becomes U+FFFD for people") {
  for (const std::string& text : {""s, "plain"s, "m\xc3\xbcsli"s, "\xf0\x9f\x90\xbc"s, "\0"s}) {
    CHECK(is_utf8(text));
    CHECK(as_utf8(text) == text);
  }
  for (const std::string& text : kOdd) {
    CHECK_FALSE(is_utf8(text));
    CHECK(is_utf8(as_utf8(text)));
    CHECK_THAT(as_utf8(text), ContainsSubstring("w") && ContainsSubstring("\xef\xbf\xbd"));
    const nlohmann::json json{{"key", {text}}};
    CHECK(nlohmann::json::parse(shown_json(json))["key"][0] == as_utf8(text));
    CHECK_THAT(error_of<CheckpointError>([&] { exact_json(json, "FILE"); }),
               ContainsSubstring("FILE: the text '") && ContainsSubstring("is no UTF-8"));
  }
}

TEST_CASE("names, metadata and info that are no UTF-8 are refused by file and name, and nothing is written") {
  const TempDir dir;
  for (const std::string& odd : kOdd) {
    const std::string path = dir / "new";
    const at::Tensor one = at::ones({1});
    const std::vector<std::function<void()>> saves{
        [&] {
          save_safetensors(path, {{odd, one}});
        },
        [&] {
          save_safetensors(path, {{"w", one}}, {{odd, "value"}});
        },
        [&] {
          save_safetensors(path, {{"w", one}}, {{"key", odd}});
        },
        [&] { save_model(Named(odd), path); },
        [&] { save_model(Named(odd), path, {.max_shard_bytes = 400}); },
        [&] {
          CheckpointWriter(path).commit({{"key", odd}});
        },
        [&] {
          CheckpointWriter(path).commit({{odd, "value"}});
        },
    };
    for (std::size_t i = 0; i < saves.size(); ++i) {
      const std::string error = error_of<CheckpointError>(saves[i]);
      CAPTURE(i, error);
      CHECK_THAT(error, ContainsSubstring(path) && ContainsSubstring("is no UTF-8, which JSON has to be"));
      CHECK_THAT(error, ContainsSubstring(odd[0] == 'w' ? "w\\x" : "\\x80w"));
      CHECK(is_utf8(error));
      CHECK(std::filesystem::is_empty(dir.path()));
    }
  }
}
