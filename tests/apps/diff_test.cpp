// build/apps/tandem diff.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <vector>

#include <nlohmann/json.hpp>

#include <ATen/Functions.h>
#include <c10/util/StringUtil.h>
#include <c10/util/bit_cast.h>

#include "support/train_program.h"
#include "tandem/core/error.h"
#include "tandem/io/pickle_file.h"
#include "tandem/io/safetensors.h"

using namespace tandem;
using namespace tandem::test;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

ProgramResult diff(const std::string& arguments) {
  return run_program(std::string(TANDEM_TOOL) + " diff " + arguments);
}

ProgramResult diff(const std::string& first, const std::string& second) { return diff(first + " " + second); }

Json json_of(const std::string& first, const std::string& second) {
  const auto result = diff("--json " + first + " " + second);
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 1);
  return Json::parse(result.output);
}

void write_file(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void save_pickle(const std::string& path, const c10::IValue& value) {
  std::ofstream file(path, std::ios::binary);
  io::write_pickle([&](const void* data, std::size_t bytes) { file.write(static_cast<const char*>(data), bytes); },
                   path, value);
}

c10::IValue dict_of(const std::vector<std::pair<c10::IValue, c10::IValue>>& items) {
  c10::impl::GenericDict dict(c10::AnyType::get(), c10::AnyType::get());
  for (const auto& [key, value] : items) dict.insert(key, value);
  return dict;
}

// A short training on as many ranks, in folders of that name.
void train_in(const TempDir& dir, const std::string& name, int ranks, const std::string& more = "") {
  const auto result = run_train(
      "--model mlp --hidden 8 --limit-train-samples 256 --batch-size 16 --max-steps 6 --save-every 2 --exact "
      "--logical-ranks 2 --quiet --log-with jsonl --log-every 1 --cpu " +
      std::to_string(ranks) + " --checkpoint-dir " + (dir / name) + "/c --log-json " + (dir / name) +
      ".log --project-dir " + (dir / name) + "/p --save-weights " + (dir / name) + ".safetensors " + more);
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
}

// Replaces the weights of a checkpoint by some that differ in one element, by so many units in the last place.
void plant(const std::string& checkpoint, const std::string& name, std::int64_t row, std::int64_t column, int ulps) {
  const std::string path = checkpoint + "/model.safetensors";
  auto tensors = io::load_safetensors(path);
  for (auto& [its_name, tensor] : tensors) {
    if (its_name != name) continue;
    auto* const element = tensor.mutable_data_ptr<float>() + row * tensor.size(1) + column;
    *element = c10::bit_cast<float>(c10::bit_cast<std::int32_t>(*element) + ulps);
  }
  const auto bytes = fs::file_size(path);  // the manifest has it
  io::save_safetensors(path, tensors);
  if (fs::file_size(path) != bytes) io::save_safetensors(path, tensors, {{"format", "pt"}});
  REQUIRE(fs::file_size(path) == bytes);
}

// Two numbers of each type, and how far they are apart.
using Bits = std::uint64_t;
struct Case {
  at::ScalarType type;
  Bits first, second;
  const char *shown, *other;
  std::optional<Bits> apart;
};

std::vector<Case> neighbours() {
  const auto nothing = std::optional<Bits>();
  return {
      {at::kDouble, 0x3ff0000000000000, 0x3ff0000000000001, "1", "1.0000000000000002", 1},
      {at::kDouble, 0x0000000000000001, 0x8000000000000001, "5e-324", "-5e-324", 2},
      {at::kFloat, 0x3f800000, 0x3f7ffffd, "1", "0.9999998", 3},
      {at::kFloat, 0x00000000, 0x80000000, "0", "-0", 0},
      {at::kFloat, 0x7f7fffff, 0x7f800000, "3.4028235e+38", "inf", 1},
      {at::kFloat, 0x7fc00000, 0x7fc00001, "nan (0x7fc00000)", "nan (0x7fc00001)", nothing},
      {at::kFloat, 0x7fc00000, 0x3f800000, "nan (0x7fc00000)", "1", nothing},
      {at::kHalf, 0x3c00, 0x3c02, "1", "1.0019531", 2},
      {at::kBFloat16, 0x3f80, 0xbf80, "1", "-1", 2 * 0x3f80},
      {at::kFloat8_e4m3fn, 0x38, 0x7f, "1", "nan (0x7f)", nothing},
      {at::kFloat8_e5m2, 0x3c, 0x3d, "1", "1.25", 1},
      {at::kFloat8_e4m3fnuz, 0x40, 0x80, "1", "nan (0x80)", nothing},
      {at::kFloat8_e5m2fnuz, 0x40, 0x42, "1", "1.5", 2},
      {at::kFloat8_e8m0fnu, 0x7f, 0x80, "1", "2", 1},
      {at::kLong, 0x8000000000000000, 0x7fffffffffffffff, "-9223372036854775808", "9223372036854775807",
       std::numeric_limits<Bits>::max()},
      {at::kInt, 0xffffffff, 2, "-1", "2", 3},
      {at::kShort, 0xfffe, 0xffff, "-2", "-1", 1},
      {at::kChar, 0x80, 0x7f, "-128", "127", 255},
      {at::kByte, 200, 100, "200", "100", 100},
      {at::kUInt16, 65535, 0, "65535", "0", 65535},
      {at::kUInt32, 1, 4294967295, "1", "4294967295", 4294967294},
      {at::kUInt64, 0, std::numeric_limits<Bits>::max(), "0", "18446744073709551615", std::numeric_limits<Bits>::max()},
      {at::kBool, 0, 1, "false", "true", nothing},
  };
}

}  // namespace

TEST_CASE("diff finds exact runs on one rank and on two equal in checkpoints, weights and logs") {
  const TempDir dir;
  train_in(dir, "a", 1);
  train_in(dir, "b", 2);
  for (const std::string part :
       {"/c", "/c/checkpoint_0", "/c/latest", "/p", ".log", ".safetensors", "/c/latest/optimizer.bin",
        "/c/latest/custom_checkpoint_0.pkl", "/c/latest/tandem_state.json"}) {
    const auto result = diff(dir / ("a" + part), dir / ("b" + part));
    CAPTURE(part, result.output);
    CHECK(result.exit_code == 0);
    CHECK_THAT(result.output, ContainsSubstring("equal: "));
  }
  CHECK(diff(dir / "a/c", dir / "b/c").output == "equal: 3 checkpoints\n");
  CHECK(diff(dir / "a/c/latest", dir / "b.safetensors").output == "equal: 4 tensors\n");
  for (const std::string part : {"/c/latest", ".log"})
    CHECK(diff("--all " + (dir / ("a" + part)), dir / ("b" + part)).exit_code == 1);

  plant(dir / "b/c/checkpoint_1", "2.weight", 3, 5, 2);
  plant(dir / "b/c/checkpoint_2", "0.weight", 0, 0, 1);
  const auto text = diff(dir / "a/c", dir / "b/c");
  CHECK(text.exit_code == 1);
  CHECK_THAT(text.output, ContainsSubstring("step 4: model.safetensors, 2.weight[3, 5]: ") &&
                              ContainsSubstring(", 2 ulp apart; 1 of 80 elements differ, at most 2 ulp\n") &&
                              ContainsSubstring("the same up to step 2\n") && ContainsSubstring("note: ") &&
                              ContainsSubstring("b/c/checkpoint_1") && !ContainsSubstring("0.weight"));
  const Json json = json_of(dir / "a/c", dir / "b/c");
  CHECK(json["same"] == false);
  CHECK(json["step"] == 4);
  REQUIRE(json["differences"].size() == 1);
  const Json& first = json["differences"][0];
  CHECK(first["checkpoint"] == "checkpoint_1");
  CHECK(first["name"] == "2.weight");
  CHECK(first["index"] == "[3, 5]");
  CHECK(first["ulps"] == 2);

  // A flag that makes another training.
  train_in(dir, "c", 1, "--weight-decay 0.5");
  const Json other = json_of(dir / "a/c", dir / "c/c");
  CHECK(other["step"] == 2);
  CHECK_THAT(other.dump(),
             ContainsSubstring(R"("name":"flags.weight-decay")") && ContainsSubstring(R"("name":"2.weight")"));
  CHECK_THAT(diff(dir / "a/p", dir / "c/p").output, ContainsSubstring("config.weight-decay: 0.01 and 0.5") &&
                                                        ContainsSubstring("step 2: values.train/loss: "));

  // What only one side has.
  fs::remove_all(dir / "a/c/checkpoint_0");
  fs::remove(dir / "b/c/checkpoint_1/scheduler.bin");
  CHECK(diff(dir / "a/c", dir / "b/c").exit_code == 2);  // its manifest has the file
  fs::remove_all(dir / "b/c/checkpoint_1");
  const Json missing = json_of(dir / "a/c", dir / "b/c");
  CHECK(missing["step"] == 6);
  REQUIRE(missing["differences"].size() == 3);
  CHECK(missing["differences"][1]["what"] == "only in first");
  CHECK(missing["differences"][1]["checkpoint"] == "checkpoint_1");
  CHECK(missing["differences"][2]["what"] == "only in second");
  CHECK(missing["differences"][2]["step"] == 2);
}

TEST_CASE("diff compares logs by step, and leaves out times, rates and memory") {
  const TempDir dir;
  const auto line = [](int step, const std::string& loss, double rate) {
    return "{\"step\":" + std::to_string(step) + ",\"loss\":" + loss +
           ",\"samples_per_second\":" + std::to_string(rate) + "}\n";
  };
  const std::string final_line = "{\"final\":{\"accuracy\":0.5,\"train_seconds\":";
  write_file(dir / "a", line(1, "0.5", 1) + line(2, "0.1", 2) + line(3, "0.25", 3) + final_line + "1}}\n");
  write_file(dir / "b", line(1, "0.5", 7) + line(2, "0.1", 8) + line(3, "0.25", 9) + final_line + "2}}\n");
  CHECK(diff(dir / "a", dir / "b").output == "equal: 4 lines\n");
  CHECK(diff("--all " + (dir / "a"), dir / "b").exit_code == 1);
  write_file(dir / "c", line(1, "0.5", 7) + line(2, "0.10000000000000002", 8) + line(3, "0.75", 9));
  const auto result = diff(dir / "a", dir / "c");
  CHECK(result.exit_code == 1);
  CHECK(result.output == "step 2: loss: 0.1 and 0.10000000000000002, 1 ulp apart\nfinal: only in " + (dir / "a") +
                             "\nthe same up to step 1\n");
  write_file(dir / "longer", read_file(dir / "a") + line(4, "1", 1) + line(5, "1", 1));
  CHECK_THAT(diff(dir / "longer", dir / "a").output,
             ContainsSubstring("step 4: this and 1 later, up to step 5: only in " + (dir / "longer")));
  write_file(dir / "null", line(1, "null", 7));
  CHECK_THAT(diff(dir / "null", dir / "a").output, ContainsSubstring("step 1: loss: type null and 0.5"));
  CHECK(diff(dir / "null", dir / "null").exit_code == 0);
  // A run that was resumed says some steps again.
  write_file(dir / "twice",
             line(1, "0.5", 1) + line(2, "9.5", 2) + line(2, "0.1", 2) + line(3, "0.25", 3) + final_line + "1}}\n");
  CHECK(diff(dir / "twice", dir / "a").exit_code == 0);
}

TEST_CASE("diff measures in the last place of each type") {
  const TempDir dir;
  const std::vector<Case> cases = neighbours();
  // Files of torch.save, which have them all.
  std::vector<std::pair<c10::IValue, c10::IValue>> first, second;
  for (std::size_t i = 0; i < cases.size(); ++i)
    for (const bool is_first : {true, false}) {
      const at::Tensor tensor = at::zeros({2, 3}, at::dtype(cases[i].type));
      const auto size = static_cast<std::size_t>(tensor.element_size());
      const Bits bits = is_first ? cases[i].first : cases[i].second;
      std::memcpy(static_cast<char*>(tensor.mutable_data_ptr()) + 4 * size, &bits, size);
      (is_first ? first : second).emplace_back(c10::str("w", i), tensor);
    }
  save_pickle(dir / "a", dict_of(first));
  save_pickle(dir / "b", dict_of(second));
  CHECK(diff(dir / "a", dir / "a").exit_code == 0);
  const Json differences = json_of(dir / "a", dir / "b")["differences"];
  REQUIRE(differences.size() == cases.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Case& one = cases[i];
    const Json& found = differences[i];
    CAPTURE(c10::toString(one.type), one.shown, one.other, found.dump());
    CHECK(found["name"] == c10::str("w", i));
    CHECK(found["index"] == "[1, 1]");
    CHECK(found["first"] == one.shown);
    CHECK(found["second"] == one.other);
    const char* const unit = at::isFloatingType(one.type) ? "ulps" : "difference";
    CHECK(found.contains(unit) == one.apart.has_value());
    if (one.apart && found.contains(unit)) CHECK(found[unit] == *one.apart);
    CHECK(found["different"] == 1);
    CHECK(found["elements"] == 6);
  }
  const at::Tensor complex = at::ones({3}, at::kComplexFloat), other = complex.clone();
  at::view_as_real(other)[2][1] = 2;
  io::save_safetensors(dir / "zero", {{"w", at::zeros({1})}});
  io::save_safetensors(dir / "minus", {{"w", -at::zeros({1})}});
  CHECK_THAT(diff(dir / "zero", dir / "minus").output,
             ContainsSubstring("w[0]: 0 and -0, which differ in the sign of zero"));
  save_pickle(dir / "a", complex);
  save_pickle(dir / "b", other);
  CHECK(json_of(dir / "a", dir / "b")["differences"][0]["index"] == "[2].imag");
  save_pickle(dir / "b", complex.conj());
  CHECK(diff(dir / "a", dir / "b").exit_code == 1);  // 0 and -0
}

TEST_CASE("diff names types, shapes, what is missing, and values of any kind in files of torch.save") {
  const TempDir dir;
  io::save_safetensors(dir / "a", {{"left", at::ones({1})}, {"shape", at::ones({2, 3})}, {"type", at::ones({4})}});
  io::save_safetensors(dir / "b",
                       {{"right", at::ones({1})}, {"shape", at::ones({3, 2})}, {"type", at::ones({4}, at::kHalf)}});
  CHECK(diff(dir / "a", dir / "b").output == "left: only in " + (dir / "a") +
                                                 "\nshape: shape [2, 3] and [3, 2]\ntype: type float32 and float16\n"
                                                 "right: only in " +
                                                 (dir / "b") + "\n");
  const auto state = [](const at::Tensor& average, double lr, const c10::IValue& extra) {
    c10::impl::GenericList numbers(c10::AnyType::get()), names(c10::AnyType::get()), groups(c10::AnyType::get());
    numbers.push_back(std::int64_t{0});
    names.push_back("2.weight");
    groups.push_back(dict_of({{"params", numbers}, {"param_names", names}, {"lr", lr}}));
    return dict_of({{"state", dict_of({{std::int64_t{0}, dict_of({{"exp_avg", average}})}})},
                    {"param_groups", groups},
                    {"extra", extra}});
  };
  save_pickle(dir / "s", state(at::zeros({2, 2}), 0.1, std::int64_t{3}));
  save_pickle(dir / "t", state(at::eye(2), 0.1, "three"));
  const Json json = json_of(dir / "s", dir / "t");
  REQUIRE(json["differences"].size() == 2);
  CHECK(json["differences"][0]["name"] == "state[0].exp_avg");
  CHECK(json["differences"][0]["parameter"] == "2.weight");
  CHECK(json["differences"][0]["index"] == "[0, 0]");
  CHECK(json["differences"][0]["different"] == 2);
  CHECK(json["differences"][1]["what"] == "type");
  CHECK_THAT(diff(dir / "s", dir / "t").output, ContainsSubstring("state[0].exp_avg[0, 0] (of 2.weight): 0 and 1"));
  save_pickle(dir / "t", state(at::zeros({2, 2}), 0.2, std::int64_t{3}));
  CHECK_THAT(diff(dir / "s", dir / "t").output, ContainsSubstring("param_groups[0].lr: 0.1 and 0.2, "));
}

TEST_CASE("diff says in one sentence, with exit code 2, what cannot be compared") {
  const TempDir dir;
  io::save_safetensors(dir / "w", {{"w", at::ones({100})}});
  save_pickle(dir / "p", dict_of({{"w", at::ones({100})}}));
  write_file(dir / "log", "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n");
  CHECK(diff(dir / "w", dir / "p").exit_code == 0);
  fs::create_directory(dir / "nothing");
  write_file(dir / "empty", "");
  write_file(dir / "text", "no log\n");
  write_file(dir / "cut-log", "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"lo");
  for (const std::string name : {"w", "p"}) {
    const std::string bytes = read_file(dir / name);
    for (const std::size_t at : {std::size_t{3}, std::size_t{20}, bytes.size() / 2, bytes.size() - 1})
      write_file(dir / ("cut-" + name + std::to_string(at)), bytes.substr(0, at));
  }
  const std::string fifo = dir / "fifo";
  REQUIRE(run_program("mkfifo " + fifo).exit_code == 0);
  int tried = 0;
  for (const auto& entry : fs::directory_iterator(dir.path())) {
    const std::string name = entry.path().filename().string();
    if (name == "w" || name == "p" || name == "log") continue;
    const std::string other = dir / "w", damaged = entry.path().string();
    const std::string arguments = ++tried % 2 == 0 ? damaged + " " + other : other + " " + damaged;
    const auto result = diff(arguments);
    CAPTURE(arguments, result.output);
    CHECK(result.exit_code == 2);
    CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
    CHECK_THAT(result.output, ContainsSubstring("tandem: "));
  }
  CHECK(tried == 13);
  const auto refused = [](const std::string& arguments, const std::string& why) {
    const auto result = diff(arguments);
    CAPTURE(arguments);
    CHECK(result.exit_code == 2);
    CHECK_THAT(result.output, ContainsSubstring(why));
  };
  refused((dir / "w") + " " + (dir / "log"), "compare two of a kind");
  refused((dir / "w") + " " + (dir / "not\xff"), "does not exist");
  refused((dir / "cut-log") + " " + (dir / "log"), "line 2 is cut off");
  refused((dir / "nothing") + " " + (dir / "w"), "is no checkpoint");
  refused(dir / "w", "second");
  CHECK(Json::parse(run_program(std::string("(") + TANDEM_TOOL + " diff --json x\xff y 2>/dev/null)").output)
            .contains("error"));
}
