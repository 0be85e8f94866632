#include "tandem/io/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <torch/types.h>

#include "io/safetensors_header.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"

using namespace tandem;
using tandem::test::error_of;
using tandem::test::TempDir;

namespace {

std::string file_of(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  const std::uint64_t length = header.size();
  for (int i = 0; i < 8; ++i) bytes[static_cast<std::size_t>(i)] = static_cast<char>(length >> (8 * i));
  return bytes + header + data;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string load_error(const std::string& bytes) {
  TempDir dir;
  std::ofstream(dir / "f", std::ios::binary) << bytes;
  try {
    io::load_safetensors(dir / "f");
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("tensors of every type come back as they were, in their order") {
  TempDir dir;
  io::NamedTensors tensors;
  for (const auto type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar,
                          at::kByte, at::kBool, at::kComplexFloat, at::kUInt16, at::kUInt32, at::kUInt64})
    tensors.emplace_back(c10::toString(type), at::arange(6).reshape({2, 3}).to(type));
  tensors.emplace_back("transposed", at::rand({3, 4}).t());
  tensors.emplace_back("scalar", at::scalar_tensor(2.5));
  tensors.emplace_back("empty", at::empty({0, 3}));
  io::save_safetensors(dir / "f", tensors, {{"format", "pt"}});
  const auto loaded = io::load_safetensors(dir / "f");
  REQUIRE(loaded.size() == tensors.size());
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    CHECK(loaded[i].first == tensors[i].first);
    CHECK(loaded[i].second.scalar_type() == tensors[i].second.scalar_type());
    CHECK(loaded[i].second.sizes() == tensors[i].second.sizes());
    CHECK(read_file(dir / "f").size() > 0);
    CHECK(at::equal(loaded[i].second.to(at::kComplexDouble), tensors[i].second.to(at::kComplexDouble)));
  }
}

TEST_CASE("types that few have are stored as they are, others are refused by name before anything is written") {
  TempDir dir;
  const at::Tensor bytes = at::arange(1, 17, at::kByte);
  int stored = 0;
  for (int i = 0; i < static_cast<int>(at::ScalarType::Undefined); ++i) {
    const auto type = static_cast<at::ScalarType>(i);
    const auto size = static_cast<std::int64_t>(c10::elementSize(type));
    const at::Tensor tensor = at::empty({0}, type).set_(bytes.storage(), 0, {1, 16 / size}, {16 / size, 1});
    CAPTURE(c10::toString(type));
    std::filesystem::remove(dir / "f");
    const std::string error = error_of<CheckpointError>([&] { io::save_safetensors(dir / "f", {{"x", tensor}}); });
    if (error.empty()) {
      const auto loaded = io::load_safetensors(dir / "f")[0].second;
      CHECK(loaded.scalar_type() == type);
      CHECK(loaded.sizes() == tensor.sizes());
      CHECK(at::equal(loaded.view(at::kByte).view(-1), bytes));
      stored += 1;
    } else {
      CHECK_THAT(error, ContainsSubstring("tensor 'x' has type " + std::string(c10::toString(type))));
      CHECK_FALSE(std::filesystem::exists(dir / "f"));
    }
  }
  CHECK(stored == 20);
}

TEST_CASE("of types that LibTorch does not have the header is read, and the rest is an error that names them") {
  TempDir dir;
  std::ofstream(dir / "f", std::ios::binary) << file_of(
      R"({"a":{"dtype":"F6_E2M3","shape":[2,4],"data_offsets":[0,6]},"b":{"dtype":"F4","shape":[3,2],"data_offsets":[6,9]}})",
      "123456789");
  const auto header = io::read_safetensors_header(dir / "f");
  REQUIRE(header.tensors.size() == 2);
  CHECK(header.tensors[0].dtype == "F6_E2M3");
  CHECK_FALSE(header.tensors[0].type);
  CHECK(header.tensors[1].shape == std::vector<std::int64_t>{3, 2});
  CHECK(header.tensors[1].sizes("f") == std::vector<std::int64_t>{3, 1});
  CHECK_THAT(error_of<CheckpointError>([&] { io::load_safetensors(dir / "f"); }),
             ContainsSubstring("tensor 'a' has the type F6_E2M3, which LibTorch does not have"));
  CHECK_THAT(load_error(file_of(R"({"a":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}})", "123")),
             ContainsSubstring("odd number of float4 in a row"));
  CHECK_THAT(load_error(file_of(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", "12")),
             ContainsSubstring("does not fill whole bytes"));
}

TEST_CASE("conjugates are stored as the numbers that they stand for") {
  TempDir dir;
  const at::Tensor numbers = at::complex(at::ones({3}), at::ones({3})).conj();
  io::save_safetensors(dir / "f", {{"x", numbers}, {"y", at::imag(numbers)}});
  const auto loaded = io::load_safetensors(dir / "f");
  CHECK(at::equal(loaded[0].second, numbers));
  CHECK(at::equal(loaded[1].second, at::full({3}, -1.0f)));
}

TEST_CASE("a file is byte for byte what the format says") {
  TempDir dir;
  io::save_safetensors(dir / "f", {{"a", at::tensor({1, 2}, at::kByte)}});
  const std::string header = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
  std::string padded = header + std::string(64 - 8 - header.size(), ' ');
  CHECK(read_file(dir / "f") == file_of(padded, std::string("\1\2", 2)));
}

TEST_CASE("tensors of one file are changed each by itself") {
  TempDir dir;
  io::save_safetensors(dir / "f", {{"a", at::zeros({3})}, {"b", at::ones({1000})}});
  const auto loaded = io::load_safetensors(dir / "f");
  CHECK(loaded[0].second.storage().is_alias_of(loaded[1].second.storage()));  // the file's bytes, read once
  at::Tensor a = loaded[0].second;
  const auto before = loaded[1].second._version();
  a.add_(1);
  CHECK(loaded[1].second._version() == before);  // autograd would take it for changed otherwise
  CHECK(at::equal(loaded[1].second, at::ones({1000})));
}

TEST_CASE("a file that another program wrote is read") {
  TempDir dir;
  std::ofstream(dir / "f", std::ios::binary) << file_of(
      R"({"__metadata__":{"k":"v"},"b":{"dtype":"I16","shape":[],"data_offsets":[1,3]},"a":{"shape":[1],"dtype":"BOOL","data_offsets":[0,1]}})",
      std::string("\1\2\1", 3));
  const auto loaded = io::load_safetensors(dir / "f");
  REQUIRE(loaded.size() == 2);
  CHECK(loaded[0].first == "a");  // as they lie in the file
  CHECK(loaded[0].second.item<bool>());
  CHECK(loaded[1].second.item<std::int64_t>() == 258);
}

TEST_CASE("hostile files are errors that name file and field") {
  CHECK_THAT(load_error(""), ContainsSubstring("too short"));
  CHECK_THAT(load_error(std::string(8, '\xff')), ContainsSubstring("header"));
  CHECK_THAT(load_error(file_of("{", "")), ContainsSubstring("no JSON"));
  CHECK_THAT(load_error(file_of("[]", "")), ContainsSubstring("no JSON object"));
  CHECK_THAT(load_error(file_of(R"({"a":3})", "")), ContainsSubstring("'a'"));
  const auto entry = [](const char* rest) { return std::string(R"({"a":)") + rest + "}"; };
  CHECK_THAT(load_error(file_of(entry(R"({"dtype":"X9","shape":[1],"data_offsets":[0,1]})"), "x")),
             ContainsSubstring("X9"));
  CHECK_THAT(load_error(file_of(entry(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,1]})"), "x")),
             ContainsSubstring("shape"));
  CHECK_THAT(load_error(file_of(entry(R"({"dtype":"U8","shape":[2],"data_offsets":[0,1]})"), "x")),
             ContainsSubstring("do not fit"));
  CHECK_THAT(load_error(file_of(entry(R"({"dtype":"U8","shape":[1],"data_offsets":[1,0]})"), "x")),
             ContainsSubstring("data_offsets"));
  CHECK_THAT(load_error(file_of(entry(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})"), "xy")),
             ContainsSubstring("too long"));
  CHECK_THAT(load_error(file_of(entry(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})"), "")),
             ContainsSubstring("cut off"));
  CHECK_THAT(load_error(file_of(
                 entry(R"({"dtype":"F64","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,1]})"), "x")),
             ContainsSubstring("impossible"));
  CHECK_THAT(load_error(file_of(entry(R"({"dtype":"U8","shape":[18446744073709551615,0],"data_offsets":[0,0]})"), "")),
             ContainsSubstring("impossible"));
  const std::string u8 = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  CHECK_THAT(load_error(file_of(R"({"a":)" + u8 + R"(,"a":)" + u8 + "}", "x")), ContainsSubstring("twice"));
  CHECK_THAT(load_error(file_of(R"({"a":)" + u8 + R"(,"b":)" + u8 + "}", "x")), ContainsSubstring("overlaps"));
}

TEST_CASE("a file changed at any byte of its header is an error or a set of tensors") {
  TempDir dir;
  io::save_safetensors(dir / "f", {{"a", at::rand({2, 3})}, {"b", at::ones({4}, at::kLong)}});
  const std::string good = read_file(dir / "f");
  int errors = 0;
  for (std::size_t at = 0; at < good.size() - 56; ++at)
    for (const char flip : {'\x01', '\x10', '\x80'}) {
      auto changed = good;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      errors += load_error(changed) != "no error";
    }
  CHECK(errors > 200);
}

TEST_CASE("what cannot be written is an error, and leaves what was there") {
  TempDir dir;
  std::ofstream(dir / "f") << "old";
  CHECK_THROWS_AS(io::save_safetensors(dir / "f", {{"a", at::ones({1})}, {"a", at::ones({1})}}), CheckpointError);
  CHECK(read_file(dir / "f") == "old");
  CHECK_THROWS_AS(io::save_safetensors(dir / "no/f", {{"a", at::ones({1})}}), CheckpointError);
  CHECK(std::distance(std::filesystem::directory_iterator(dir.path()), std::filesystem::directory_iterator()) == 1);
}

TEST_CASE("check_writable finds out before, and leaves nothing behind") {
  TempDir dir;
  std::ofstream(dir / "f") << "old";
  CHECK_NOTHROW(io::check_writable(dir / "f"));
  CHECK_NOTHROW(io::check_writable(dir / "new"));
  CHECK(read_file(dir / "f") == "old");
  CHECK_FALSE(std::filesystem::exists(dir / "new"));
  CHECK_THROWS_WITH(io::check_writable(dir / "no/f"), ContainsSubstring("does not exist"));
  CHECK_THROWS_WITH(io::check_writable(dir.path()), ContainsSubstring("directory"));
  CHECK_THROWS_AS(io::check_writable(""), ConfigError);
}
