// build/apps/tandem checkpoint.
#include <nlohmann/json.hpp>

#include <ATen/Functions.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include "support/train_program.h"
#include "tandem/io/model_files.h"
#include "tandem/io/safetensors.h"

using namespace tandem;
using namespace tandem::test;
using Json = nlohmann::json;

namespace {

ProgramResult checkpoint(const std::string& arguments) {
  return run_program(std::string(TANDEM_TOOL) + " checkpoint " + arguments);
}

torch::nn::Sequential make_net() { return torch::nn::Sequential(torch::nn::Linear(30, 20), torch::nn::Linear(20, 5)); }

void flip_byte(const std::string& path, std::int64_t from_end) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-from_end, std::ios::end);
  const char byte = static_cast<char>(file.get());
  file.seekp(-from_end, std::ios::end);
  file.put(static_cast<char>(byte ^ 1));
}

// A directory as Python writes it, without a manifest.
std::string save_as_python(const TempDir& dir) {
  const std::string directory = dir / "python";
  std::filesystem::create_directory(directory);
  io::save_safetensors(directory + "/a.safetensors", {{"a", at::arange(6, at::kFloat)}});
  io::save_safetensors(directory + "/b.safetensors", {{"b", at::arange(6)}});
  std::ofstream(directory + "/model.safetensors.index.json")
      << R"({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})";
  return directory;
}

}  // namespace

TEST_CASE("show lists files, info and tensors of a checkpoint, of Python's directory and of a file") {
  const TempDir dir;
  io::save_model(dir / "m", *make_net(), {.max_shard_bytes = 1000});
  const auto json = Json::parse(checkpoint("show --json " + (dir / "m")).output);
  CHECK(json["info"]["kind"] == "model");
  CHECK(json["tensors"].size() == 4);
  CHECK(json["bytes"] == 4 * (600 + 20 + 100 + 5));
  CHECK(json["files"].contains("model.safetensors.index.json"));
  const auto words = checkpoint("show " + (dir / "m"));
  CHECK(words.exit_code == 0);
  CHECK_THAT(words.output, ContainsSubstring("0.weight") && ContainsSubstring("[20,30]") && ContainsSubstring("F32") &&
                               ContainsSubstring("bytes of 4 tensors"));
  const auto python = Json::parse(checkpoint("show --json " + save_as_python(dir)).output);
  CHECK(python["tensors"][1]["type"] == "I64");
  CHECK(python["tensors"][1]["file"] == "b.safetensors");
  CHECK_THAT(checkpoint("show " + (dir / "python/a.safetensors")).output, ContainsSubstring("bytes of 1 tensors"));
  CHECK(checkpoint("show " + (dir / "nothing")).exit_code == 1);
  CHECK(checkpoint("show").exit_code == 2);
}

TEST_CASE("verify finds one changed bit and names the file; without checksums it finds what is missing or cut off") {
  const TempDir dir;
  io::save_model(dir / "m", *make_net(), {.max_shard_bytes = 1000});
  CHECK(checkpoint("verify " + (dir / "m")).exit_code == 0);
  flip_byte(dir / "m/model-00002-of-00002.safetensors", 3);
  const auto damaged = checkpoint("verify --json " + (dir / "m"));
  CHECK(damaged.exit_code == 1);
  CHECK_THAT(damaged.output, ContainsSubstring("model-00002-of-00002.safetensors: is damaged"));
  const std::string python = save_as_python(dir);
  const auto whole = checkpoint("verify " + python);
  CHECK(whole.exit_code == 0);
  CHECK_THAT(whole.output, ContainsSubstring("no checksums"));
  std::filesystem::resize_file(python + "/b.safetensors", 100);
  CHECK_THAT(checkpoint("verify " + python).output, ContainsSubstring("b.safetensors: is cut off"));
  std::filesystem::remove(python + "/b.safetensors");
  CHECK_THAT(checkpoint("verify " + python).output, ContainsSubstring("b.safetensors: does not exist"));
}

TEST_CASE("diff names what is in one only, what has another shape or type, and the largest difference") {
  const TempDir dir;
  const at::Tensor same = at::rand({7});
  const at::Tensor nan = at::full({2}, std::numeric_limits<double>::quiet_NaN(), at::kFloat);
  io::save_safetensors(dir / "a", {{"same", same},
                                   {"nan", nan},
                                   {"left", same},
                                   {"shape", at::zeros({2, 3})},
                                   {"type", at::ones({4})},
                                   {"values", at::zeros({5})}});
  io::save_safetensors(dir / "b", {{"same", same},
                                   {"nan", nan},
                                   {"right", same},
                                   {"shape", at::zeros({3, 2})},
                                   {"type", at::ones({4}, at::kBFloat16)},
                                   {"values", at::tensor({0.0f, 0.0f, -0.25f, 0.0f, 0.125f})}});
  const auto result = checkpoint("diff --json " + (dir / "a") + " " + (dir / "b"));
  CHECK(result.exit_code == 1);
  const auto json = Json::parse(result.output);
  CHECK(json["equal"] == 2);
  CHECK(json["only_in_first"] == Json({"left"}));
  CHECK(json["only_in_second"] == Json({"right"}));
  REQUIRE(json["different"].size() == 3);
  CHECK(json["different"][0]["what"] == "shape [2, 3] and [3, 2]");
  CHECK(json["different"][1]["what"] == "type F32 and BF16");
  CHECK(json["different"][1]["largest"] == 0.0);
  CHECK(json["different"][2]["largest"] == 0.25);
  CHECK_THAT(checkpoint("diff " + (dir / "a") + " " + (dir / "b")).output,
             ContainsSubstring("values: values, largest difference 0.25"));
  CHECK(checkpoint("diff " + (dir / "a") + " " + (dir / "a")).exit_code == 0);
  io::save_safetensors(dir / "c", {{"x", at::zeros({1})}});
  io::save_safetensors(dir / "d", {{"x", at::full({1}, 0.5)}});
  CHECK(checkpoint("diff --tolerance 0.5 " + (dir / "c") + " " + (dir / "d")).exit_code == 0);
  CHECK(checkpoint("diff --tolerance 0.4 " + (dir / "c") + " " + (dir / "d")).exit_code == 1);
}

TEST_CASE("convert changes type and files, and back; merge makes one file") {
  const TempDir dir;
  auto net = make_net();
  io::save_model(dir / "m", *net);
  REQUIRE(checkpoint("convert " + (dir / "m") + " " + (dir / "half") + " --type bf16 --max-shard-size 1KB").exit_code ==
          0);
  const auto json = Json::parse(checkpoint("show --json " + (dir / "half")).output);
  CHECK(json["bytes"] == 2 * (600 + 20 + 100 + 5));
  CHECK(json["files"].contains("model-00002-of-00002.safetensors"));
  auto loaded = make_net();
  io::load_model(dir / "half", *loaded);
  CHECK(at::equal(loaded->parameters()[0], net->parameters()[0].to(at::kBFloat16).to(at::kFloat)));
  REQUIRE(checkpoint("merge " + (dir / "half") + " " + (dir / "one.safetensors")).exit_code == 0);
  CHECK(checkpoint("diff " + (dir / "half") + " " + (dir / "one.safetensors")).exit_code == 0);
  REQUIRE(checkpoint("convert " + (dir / "one.safetensors") + " " + (dir / "again") + " --type fp32").exit_code == 0);
  CHECK(checkpoint("verify " + (dir / "again")).exit_code == 0);
  io::load_model(dir / "again", *loaded);
}

TEST_CASE("convert overwrites nothing, and reads nothing that is damaged") {
  const TempDir dir;
  io::save_model(dir / "m", *make_net());
  std::filesystem::create_directory(dir / "mine");
  std::ofstream(dir / "mine.safetensors") << "mine";
  for (const char* name : {"mine", "mine.safetensors", "m"}) {
    const auto result = checkpoint("convert " + (dir / "m") + " " + (dir / name));
    CHECK(result.exit_code == 2);
    CHECK_THAT(result.output, ContainsSubstring("is there already"));
  }
  CHECK(std::filesystem::file_size(dir / "mine.safetensors") == 4);
  for (const char* size : {"0", "5XB", "-1MB", "x", "99999999999TB"})
    CHECK(checkpoint("convert " + (dir / "m") + " " + (dir / "new") + " --max-shard-size " + size).exit_code == 2);
  CHECK(checkpoint("convert " + (dir / "m") + " " + (dir / "new") + " --type int8").exit_code == 2);
  CHECK(checkpoint("merge " + (dir / "m") + " " + (dir / "new")).exit_code == 2);
  flip_byte(dir / "m/model.safetensors", 3);
  CHECK(checkpoint("convert " + (dir / "m") + " " + (dir / "new")).exit_code == 1);
  CHECK(!std::filesystem::exists(dir / "new"));
}
