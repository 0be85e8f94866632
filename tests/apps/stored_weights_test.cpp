// build/apps/tandem checkpoint.
#include <sstream>

#include <nlohmann/json.hpp>

#include <ATen/Functions.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include "support/train_program.h"
#include "tandem/io/model_files.h"
#include "tandem/io/pickle_file.h"
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

// A directory of pytorch_model.bin.
std::string save_as_torch(const TempDir& dir, const io::NamedTensors& tensors) {
  static int number = 0;
  const std::string directory = dir / ("torch" + std::to_string(number++));
  std::filesystem::create_directory(directory);
  c10::impl::GenericDict state(c10::AnyType::get(), c10::AnyType::get());
  for (const auto& [name, tensor] : tensors) state.insert(name, tensor);
  std::ofstream file(directory + "/pytorch_model.bin", std::ios::binary);
  io::write_pickle([&](const void* data, std::size_t bytes) { file.write(static_cast<const char*>(data), bytes); },
                   "file", state);
  return directory;
}

}  // namespace

TEST_CASE("show lists files, info and tensors of a checkpoint, of Python's directory and of a file") {
  const TempDir dir;
  io::save_model(*make_net(), dir / "m", {.max_shard_bytes = 1000});
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

TEST_CASE("verify finds one changed bit and names the file, without checksums it finds what is missing or cut off") {
  const TempDir dir;
  io::save_model(*make_net(), dir / "m", {.max_shard_bytes = 1000});
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

TEST_CASE("files of torch.save are shown, verified, estimated, compared and converted as safetensors are") {
  const TempDir dir;
  const std::string model = save_as_torch(dir, {{"w", at::arange(6, at::kFloat).view({2, 3}).t()},
                                                {"expanded", at::ones({1}).expand({1000})},
                                                {"complex", at::ones({2}, at::kComplexDouble)}});
  for (const std::string& path : {model, model + "/pytorch_model.bin"}) {
    const auto json = Json::parse(checkpoint("show --json " + path).output);
    REQUIRE(json["tensors"].size() == 3);
    CHECK(json["tensors"][0]["type"] == "F32");
    CHECK(json["tensors"][0]["shape"] == Json({3, 2}));
    CHECK(json["tensors"][2]["type"] == "complex128");
    CHECK(json["bytes"] == 24 + 4000 + 32);
    const auto whole = checkpoint("verify " + path);
    CHECK(whole.exit_code == 0);
    CHECK_THAT(whole.output, ContainsSubstring("whole: 1 file, by structure and sizes"));
    const auto estimate = run_program(std::string(TANDEM_TOOL) + " estimate --json " + path);
    CHECK(Json::parse(estimate.output)["parameters"] == 6 + 1000 + 32 / 4);
  }
  CHECK(checkpoint("diff " + model + " " + model).exit_code == 0);
  CHECK_THAT(checkpoint("convert " + model + " " + (dir / "new")).output,
             ContainsSubstring("tensor 'complex' has type ComplexDouble, which safetensors does not have"));
  const std::string other = save_as_torch(dir, {{"w", at::arange(6, at::kFloat).view({2, 3}).t()}});
  REQUIRE(checkpoint("convert " + other + " " + (dir / "new.safetensors")).exit_code == 0);
  CHECK(checkpoint("diff " + other + " " + (dir / "new.safetensors")).exit_code == 0);
  std::filesystem::resize_file(other + "/pytorch_model.bin", 300);
  CHECK_THAT(checkpoint("verify " + other).output,
             ContainsSubstring("pytorch_model.bin: is no file of torch.save, or"));
}

TEST_CASE("types that LibTorch has in part or not at all are shown, verified, estimated and compared") {
  const TempDir dir;
  const std::string header =
      R"({"f8":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]},"f4":{"dtype":"F4","shape":[2,4],"data_offsets":[4,8]},)"
      R"("f6":{"dtype":"F6_E3M2","shape":[4],"data_offsets":[8,11]}})";
  const auto write = [&](const char* name, const std::string& data) {
    const std::uint64_t length = header.size();
    std::ofstream(dir / name, std::ios::binary)
        << std::string(reinterpret_cast<const char*>(&length), sizeof length) << header << data;
  };
  write("a", "1234567890a");
  write("b", "1234567890b");
  const auto json = Json::parse(checkpoint("show --json " + (dir / "a")).output);
  REQUIRE(json["tensors"].size() == 3);
  CHECK(json["tensors"][1]["type"] == "F4");
  CHECK(json["tensors"][1]["shape"] == Json({2, 4}));
  CHECK(checkpoint("verify " + (dir / "a")).exit_code == 0);
  const auto estimate = run_program(std::string(TANDEM_TOOL) + " estimate --json " + (dir / "a"));
  CHECK(Json::parse(estimate.output)["parameters"] == 4 + 8 + 4);
  CHECK(checkpoint("diff " + (dir / "a") + " " + (dir / "a")).exit_code == 0);
  CHECK_THAT(checkpoint("diff " + (dir / "a") + " " + (dir / "b")).output, ContainsSubstring("f6: values"));
  CHECK_THAT(checkpoint("convert " + (dir / "a") + " " + (dir / "c")).output,
             ContainsSubstring("tensor 'f6' has the type F6_E3M2, which LibTorch does not have"));
}

TEST_CASE("text that is no UTF-8 in paths, names and lines never ends the program: U+FFFD in JSON") {
  const TempDir dir;
  const std::string replaced = "\xef\xbf\xbd";
  const std::string model = save_as_torch(dir, {{"w\xff", at::ones({2})}});
  CHECK(Json::parse(checkpoint("show --json " + model).output)["tensors"][0]["name"] == "w" + replaced);
  const std::string plain = save_as_torch(dir, {{"v", at::ones({2})}});
  const auto diff = checkpoint("diff --json " + model + " " + plain);
  CHECK(diff.exit_code == 1);
  CHECK(Json::parse(diff.output)["only_in_first"][0] == "w" + replaced);
  CHECK_THAT(checkpoint("convert " + model + " " + (dir / "new")).output,
             ContainsSubstring(R"(tensor 'w\xff' is no UTF-8)"));
  const std::string odd = dir / "no\xff";
  std::ofstream(dir / "lines\xff") << "\xff\n{\"\xff\": 1}\n{\"length\": \"\xff\"}\n";
  for (const std::string& arguments :
       {"checkpoint show --json " + odd, "checkpoint verify --json " + odd, "checkpoint diff --json " + odd + " " + odd,
        "estimate --json " + odd, "plan --json --length " + odd, "env --json --cpu " + odd, "test --json --gpus " + odd,
        "bench train --json --model " + odd}) {
    const auto result = run_program("(" + std::string(TANDEM_TOOL) + " " + arguments + " 2>/dev/null)");
    CAPTURE(arguments, result.output);
    CHECK((result.exit_code == 1 || result.exit_code == 2));
    CHECK_THAT(Json::parse(result.output)["error"].get<std::string>(), ContainsSubstring(replaced));
  }
  const auto lines = run_program(std::string(TANDEM_TOOL) + " plan --batch " + (dir / "lines\xff"));
  CHECK(lines.exit_code == 0);
  std::istringstream answers(lines.output);
  int errors = 0;
  for (std::string line; std::getline(answers, line);) errors += Json::parse(line).contains("error") ? 1 : 0;
  CHECK(errors == 3);
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

TEST_CASE("convert changes type and files, and back, merge makes one file") {
  const TempDir dir;
  auto net = make_net();
  io::save_model(*net, dir / "m");
  REQUIRE(checkpoint("convert " + (dir / "m") + " " + (dir / "half") + " --type bf16 --max-shard-size 1KB").exit_code ==
          0);
  const auto json = Json::parse(checkpoint("show --json " + (dir / "half")).output);
  CHECK(json["bytes"] == 2 * (600 + 20 + 100 + 5));
  CHECK(json["files"].contains("model-00002-of-00002.safetensors"));
  auto loaded = make_net();
  io::load_model(*loaded, dir / "half");
  CHECK(at::equal(loaded->parameters()[0], net->parameters()[0].to(at::kBFloat16).to(at::kFloat)));
  REQUIRE(checkpoint("merge " + (dir / "half") + " " + (dir / "one.safetensors")).exit_code == 0);
  CHECK(checkpoint("diff " + (dir / "half") + " " + (dir / "one.safetensors")).exit_code == 0);
  REQUIRE(checkpoint("convert " + (dir / "one.safetensors") + " " + (dir / "again") + " --type fp32").exit_code == 0);
  CHECK(checkpoint("verify " + (dir / "again")).exit_code == 0);
  io::load_model(*loaded, dir / "again");
}

TEST_CASE("convert overwrites nothing, and reads nothing that is damaged") {
  const TempDir dir;
  io::save_model(*make_net(), dir / "m");
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
