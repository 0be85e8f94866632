// Files of torch.save: written for Python, and read from anybody.
#include "tandem/io/pickle_file.h"
#include "support/file_bytes.h"

#include <caffe2/serialize/inline_container.h>

#include <fstream>
#include <limits>
#include <random>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include "io/ivalue_tensors.h"
#include "io/scalar_types.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "support/mutated.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;
using namespace std::string_literals;
using Dict = c10::impl::GenericDict;
using List = c10::impl::GenericList;

namespace {

Dict new_dict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }

void write(const std::string& path, const c10::IValue& value) {
  std::ofstream file(path, std::ios::binary);
  write_pickle([&](const void* data, std::size_t bytes) { file.write(static_cast<const char*>(data), bytes); }, path,
               value);
}

// An archive with this pickle, and a storage "0" of `bytes` bytes.
void write_archive(const std::string& path, const std::string& pickle, std::size_t bytes = 16) {
  std::ofstream file(path, std::ios::binary);
  caffe2::serialize::PyTorchStreamWriter archive([&](const void* data, std::size_t size) {
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
    return size;
  });
  archive.writeRecord("data.pkl", pickle.data(), pickle.size());
  archive.writeRecord("data/0", std::string(bytes, '\1').data(), bytes);
  archive.writeEndOfFile();
}

std::string error_reading(const std::string& path) {
  return error_of<CheckpointError>([&] { read_pickle(path, "shown"); });
}

std::string error_of_pickle(const std::string& pickle) {
  const TempDir dir;
  write_archive(dir / "file", pickle);
  return error_reading(dir / "file");
}

// "\x80\x02" and a tensor of floats on storage 0 with these sizes, strides, offset and number of elements.
std::string tensor_pickle(const std::string& sizes, const std::string& strides, char offset, char elements) {
  std::string pickle =
      "\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
      "0X\x03\0\0\0cpuK"s;
  pickle += elements;
  pickle += "tQK";
  pickle += offset;
  pickle += sizes;
  pickle += strides;
  return pickle += "\x89N}tR.";
}

// A state as an optimizer has it.
c10::IValue some_state() {
  Dict inner = new_dict(), all = new_dict();
  List list(c10::AnyType::get());
  inner.insert(std::int64_t{0}, at::arange(6, at::kFloat).view({2, 3}).t());
  inner.insert(std::int64_t{1}, at::ones({3}, at::kBFloat16));
  list.push_back(c10::IValue());
  list.push_back(-0.5);
  list.push_back(std::int64_t{1} << 40);
  list.push_back(true);
  all.insert("state", inner);
  all.insert("list", list);
  all.insert("pair", c10::ivalue::Tuple::create({0.9, 0.999}));
  all.insert("text", "müsli");
  all.insert("empty", at::empty({0, 3}, at::kLong));
  return all;
}

}  // namespace

TEST_CASE("values come back as they were: nestings, types, strides, what tensors share no storage with") {
  const TempDir dir;
  write(dir / "file", some_state());
  const c10::IValue back = read_pickle(dir / "file");
  const Dict all = back.toGenericDict();
  const Dict inner = all.at("state").toGenericDict();
  CHECK(at::equal(inner.at(std::int64_t{0}).toTensor(), at::arange(6, at::kFloat).view({2, 3}).t()));
  CHECK(inner.at(std::int64_t{0}).toTensor().strides() == c10::IntArrayRef{1, 3});
  CHECK(inner.at(std::int64_t{1}).toTensor().scalar_type() == at::kBFloat16);
  const auto list = all.at("list").toListRef();
  REQUIRE(list.size() == 4);
  CHECK(list[0].isNone());
  CHECK(list[1].toDouble() == -0.5);
  CHECK(list[2].toInt() == std::int64_t{1} << 40);
  CHECK(list[3].toBool());
  CHECK(all.at("pair").toTupleRef().elements()[1].toDouble() == 0.999);
  CHECK(all.at("text").toStringRef() == "müsli");
  CHECK(all.at("empty").toTensor().sizes() == c10::IntArrayRef{0, 3});
}

TEST_CASE("records that were compressed by another program are read") {
  const TempDir dir;
  const at::Tensor values = at::rand({1000});
  write(dir / "file", values);
  caffe2::serialize::PyTorchStreamReader from(dir / "file");
  std::ofstream to(dir / "packed", std::ios::binary);
  caffe2::serialize::PyTorchStreamWriter packed([&](const void* data, std::size_t bytes) {
    to.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    return bytes;
  });
  for (const std::string name : {"data.pkl", "byteorder", "data/0"}) {
    std::string bytes(from.getRecordSize(name), '\0');
    from.getRecord(name, bytes.data(), bytes.size());
    packed.writeRecord(name, bytes.data(), bytes.size(), /*compress=*/name == "data/0");
  }
  packed.writeEndOfFile();
  to.close();
  CHECK(at::equal(read_pickle(dir / "packed").toTensor(), values));
}

TEST_CASE("a directory that says that a record lies elsewhere is an error, or the record is right all the same") {
  const TempDir dir;
  const at::Tensor values = at::arange(1, 1001, at::kFloat);
  write(dir / "file", values);
  const std::string good = bytes_of(dir / "file");
  const std::size_t entry = good.rfind("PK\1\2", good.rfind("data/0"));
  REQUIRE(entry != std::string::npos);
  const auto whole = static_cast<std::uint32_t>(good.size());
  int wrong = 0;
  for (const std::uint32_t elsewhere : {0U, 1U, 94U, 700U, whole - 40, whole - 20, whole, whole + 5, 0xFFFFFFF0U}) {
    std::string bad = good;
    std::memcpy(bad.data() + entry + 42, &elsewhere, sizeof elsewhere);
    std::ofstream(dir / "bad", std::ios::binary) << bad;
    CAPTURE(elsewhere);
    at::Tensor read = values;
    const std::string error = error_of<CheckpointError>([&] { read = read_pickle(dir / "bad").toTensor(); });
    CHECK(at::equal(read, values));
    wrong += error.empty() ? 0 : 1;
  }
  CHECK(wrong > 5);
}

TEST_CASE("of a view only its own elements are written") {
  const TempDir dir;
  const at::Tensor large = at::arange(1'000'000, at::kFloat);
  write(dir / "file", large.slice(0, 10, 20));
  CHECK(bytes_of(dir / "file").size() < 10'000);
  CHECK(at::equal(read_pickle(dir / "file").toTensor(), at::arange(10, 20, at::kFloat)));
}

TEST_CASE(
    "tensors of every type come back as they were: dense, with gaps, repeated, quantized ones are refused by name") {
  const TempDir dir;
  int types = 0, refused = 0;
  for (int i = 0; i < static_cast<int>(at::ScalarType::Undefined); ++i) {
    const auto type = static_cast<at::ScalarType>(i);
    const auto size = static_cast<std::int64_t>(c10::elementSize(type));
    const at::Tensor bytes = at::arange(1, 24 * size + 1).remainder(251).to(at::kByte);
    CAPTURE(c10::toString(type));
    if (c10::isQIntType(type)) {
      const at::Tensor quantized = at::_empty_affine_quantized({2}, at::TensorOptions(type), 0.5, 1);
      Dict state = new_dict();
      state.insert("x", quantized);
      CHECK_THAT(error_of<CheckpointError>([&] { write(dir / "file", state); }),
                 ContainsSubstring("file: cannot be written: value['x'] is a quantized tensor (" +
                                   std::string(c10::toString(type)) + "); save its int_repr()"));
      refused += 1;
      continue;
    }
    const auto tensor = [&](at::IntArrayRef sizes, at::IntArrayRef strides) {
      return at::empty({0}, type).set_(bytes.storage(), 2, sizes, strides);
    };
    for (const at::Tensor& saved : {tensor({2, 3}, {3, 1}), tensor({2, 3}, {1, 2}), tensor({2, 3}, {6, 2}),
                                    tensor({2, 3}, {0, 1}), tensor({}, {}), tensor({0, 3}, {3, 1})}) {
      write(dir / "file", saved);
      const at::Tensor back = read_pickle(dir / "file").toTensor();
      CHECK(back.scalar_type() == type);
      CHECK(at::equal(as_plain(back), as_plain(saved)));
      CHECK(at::equal(as_plain(copy_of(back)), as_plain(saved)));
    }
    types += 1;
  }
  CHECK(types == 41);
  CHECK(refused == 5);
}

TEST_CASE("checkpoints of Tandem 0.1 with types that Python has no storages of are read") {
  const TempDir dir;
  for (const auto type : {at::kUInt16, at::kBits16, at::kHalf}) {
    std::string pickle = tensor_pickle("K\x02\x85"s, "K\x01\x85"s, '\1', '\x08');
    pickle.replace(pickle.find("FloatStorage"), 12, std::string(c10::toString(type)) + "Storage");
    write_archive(dir / "file", pickle);
    const at::Tensor read = read_pickle(dir / "file").toTensor();
    CHECK(read.scalar_type() == type);
    CHECK(at::equal(as_plain(read), at::full({2}, 0x101, at::kShort)));
  }
}

TEST_CASE("what elements stand for is written, not what lies there: conjugates and negatives") {
  const TempDir dir;
  const at::Tensor numbers = at::complex(at::arange(3, at::kFloat), at::ones({3})).conj();
  REQUIRE(numbers.is_conj());
  REQUIRE(at::imag(numbers).is_neg());
  write(dir / "file", c10::ivalue::Tuple::create({numbers, at::imag(numbers)}));
  const auto back = read_pickle(dir / "file").toTupleRef().elements().vec();
  CHECK(at::equal(back[0].toTensor(), numbers));
  CHECK(at::equal(back[1].toTensor(), at::full({3}, -1.0f)));
}

TEST_CASE("one memory with two types is two storages, with one type one") {
  const TempDir dir;
  const at::Tensor floats = at::arange(1000, at::kFloat), wholes = floats.view(at::kInt);
  write(dir / "file", c10::ivalue::Tuple::create({floats, wholes, floats.view({10, 100})}));
  const auto back = read_pickle(dir / "file").toTupleRef().elements().vec();
  CHECK(at::equal(back[0].toTensor(), floats));
  CHECK(at::equal(back[1].toTensor(), wholes));
  CHECK(at::equal(back[2].toTensor(), floats.view({10, 100})));
  CHECK(back[2].toTensor().is_alias_of(back[0].toTensor()));
  CHECK(bytes_of(dir / "file").size() < 10'000);
}

TEST_CASE("values of every kind that is written are read, others are refused by name and place") {
  const TempDir dir;
  Dict keys = new_dict();
  keys.insert("text", c10::complex<double>(1, -2));
  keys.insert("\xff\0 no text"s, "\x80\xff\0"s);
  keys.insert(std::int64_t{7}, c10::Device("cuda:3"));
  List numbers(c10::AnyType::get());  // a file does not say what type lists are of
  numbers.push_back(std::int64_t{1});
  numbers.push_back(std::int64_t{2});
  keys.insert(0.5, numbers);
  keys.insert(true, std::string(100'000, 'x'));
  for (const std::int64_t number :
       {std::numeric_limits<std::int64_t>::min(), std::int64_t{-2147483649}, std::int64_t{-2147483648},
        std::int64_t{2147483648}, std::numeric_limits<std::int64_t>::max()})
    keys.insert(number, number);
  write(dir / "file", keys);
  const Dict back = read_pickle(dir / "file").toGenericDict();
  REQUIRE(back.size() == keys.size());
  for (const auto& item : keys) CHECK(back.at(item.key()) == item.value());

  const auto refused = [&](const c10::IValue& value) {
    List outer(c10::AnyType::get());
    outer.push_back(std::int64_t{0});
    outer.push_back(value);
    return error_of<CheckpointError>([&] { write(dir / "file", outer); });
  };
  CHECK_THAT(refused(at::Tensor()), ContainsSubstring("value[1] is an undefined tensor"));
  CHECK_THAT(refused(at::eye(2).to_sparse()), ContainsSubstring("value[1] is a tensor that is not dense"));
  CHECK_THAT(refused(at::empty({2}, at::kMeta)), ContainsSubstring("value[1] is a tensor without memory"));
  CHECK_THAT(refused(at::make_generator<at::CPUGeneratorImpl>()),
             ContainsSubstring("value[1] is of the kind Generator"));
  Dict by_tensor = new_dict();
  by_tensor.insert(at::ones({1}), true);
  CHECK_THAT(refused(by_tensor), ContainsSubstring("value[1] is a dict with a key of the kind Tensor"));
  List itself(c10::AnyType::get());
  itself.push_back(itself);
  CHECK_THAT(refused(itself), ContainsSubstring("value[1][0] is within itself"));
  itself.clear();
  c10::IValue deep = true;
  for (int i = 0; i < 63; ++i) deep = c10::ivalue::Tuple::create({deep});
  CHECK_THAT(refused(deep), ContainsSubstring("is nested 64 deep"));
  write(dir / "file", deep);
  CHECK(read_pickle(dir / "file").isTuple());
  CHECK_THAT(refused(std::string(65 << 20, 'x')), ContainsSubstring("keep it in a tensor"));
}

TEST_CASE("files of the format before PyTorch 1.6 are read, with parts of storages as then") {
  const TempDir dir;
  const auto number = [](std::uint64_t value) { return std::string(reinterpret_cast<const char*>(&value), 8); };
  const auto tensor = [](const std::string& part) {
    return "ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\nShortStorage\nU\3keyU\3cpuK\4"s + part +
           "tQK\1K\2\x85K\1\x85tR";
  };
  const std::string begin = "\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\x02M\xe9\3.\x80\x02}U\x0dlittle_endian"s;
  const std::string value = "\x80\x02" + tensor("N") + tensor("(U\4partK\1K\3t") + "\x86.";
  const std::string end = "\x80\x02](U\3keye." + number(4) + "\1\0\2\0\3\0\4\0"s;
  const auto write_old = [&](const std::string& bytes) { std::ofstream(dir / "old", std::ios::binary) << bytes; };
  write_old(begin + "\x88s." + value + end);
  const auto back = read_pickle(dir / "old").toTupleRef().elements().vec();
  CHECK(at::equal(back[0].toTensor(), at::tensor({2, 3}, at::kShort)));
  CHECK(at::equal(back[1].toTensor(), at::tensor({3, 4}, at::kShort)));

  write_old(begin + "\x89s." + value + end);
  CHECK_THAT(error_reading(dir / "old"), ContainsSubstring("shown: is of a machine with another order of bytes"));
  write_old(begin + "\x88s." + value + "\x80\x02](U\3keye." + number(5) + std::string(10, '\0'));
  CHECK_THAT(error_reading(dir / "old"), ContainsSubstring("5 elements of a storage, and its tensors need 4"));
  std::mt19937 random(7);
  const std::string whole = begin + "\x88s." + value + end;
  for (std::size_t cut = 0; cut < whole.size(); ++cut) {
    write_old(whole.substr(0, cut));
    CHECK(!error_reading(dir / "old").empty());
  }
  for (int round = 0; round < 5'000; ++round) {
    write_old(mutated(whole, random));
    error_reading(dir / "old");
  }
  write_old(std::string(257, 'x') + "ustar" + std::string(300, '\0'));
  CHECK_THAT(error_reading(dir / "old"), ContainsSubstring("load it with PyTorch's torch.load and save it again"));
}

TEST_CASE("numbers and arrays of NumPy's are read as type and bytes, and damaged ones are errors") {
  const TempDir dir;
  const std::string type =
      "cnumpy\ndtype\nX\2\0\0\0i2\x89\x88\x87R(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"s;
  const std::string scalar = "cnumpy._core.multiarray\nscalar\n" + type + "C\2\1\2\x86R";
  const std::string array =
      "cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
      "C\1b\x87R"
      "(K\1K\2K\1\x86"s +
      type +
      "\x88"
      "C\4\1\0\2\0tb"s;
  const std::string pickle = "\x80\x02" + scalar + array + "\x86.";
  write_archive(dir / "file", pickle);
  const auto back = read_pickle(dir / "file").toTupleRef().elements().vec();
  CHECK(back[0].toInt() == 513);
  CHECK(at::equal(back[1].toTensor(), at::tensor({1, 2}, at::kShort).view({2, 1})));
  std::mt19937 random(7);
  int errors = 0;
  for (int round = 0; round < 3'000; ++round) {
    write_archive(dir / "file", mutated(pickle, random));
    errors += error_reading(dir / "file").empty() ? 0 : 1;
  }
  CHECK(errors > 300);
}

TEST_CASE("what would run code in Python is an error that names it, and nothing is run") {
  CHECK_THAT(error_of_pickle("\x80\x02"
                             "cos\nsystem\nX\x04\0\0\0true\x85R."),
             ContainsSubstring("cut off"));
  CHECK_THAT(error_of_pickle("\x80\x02"
                             "cos\nsystem\nX\x04\0\0\0true\x85R."s),
             ContainsSubstring("shown: needs 'os.system' of Python's, which Tandem does not run"));
  CHECK_THAT(error_of_pickle("\x80\x02"
                             "cbuiltins\neval\n."),
             ContainsSubstring("needs 'builtins.eval'"));
  CHECK_THAT(error_of_pickle("\x80\x02}cbuiltins\neval\n)Rb."), ContainsSubstring("needs 'builtins.eval'"));
}

TEST_CASE("values that would take endless time, memory or stack are errors") {
  std::string deep = "\x80\x02";
  for (int i = 0; i < 1'000'000; ++i) deep += ']';
  for (int i = 1; i < 1'000'000; ++i) deep += 'a';
  CHECK_THAT(error_of_pickle(deep + "."), ContainsSubstring("nested too deeply"));
  CHECK_THAT(error_of_pickle("\x80\x02]q\0h\0a."s), ContainsSubstring("holds itself"));
  // Each of 60 lists holds the one before twice: 2^60 elements, if one counts them.
  std::string laughs = "\x80\x02]q\0"s;
  for (int i = 1; i < 60; ++i) {
    const char before = static_cast<char>(i - 1), now = static_cast<char>(i);
    laughs += std::string("](h") + before + 'h' + before + "eq" + now;
  }
  CHECK(error_of_pickle(laughs + ".").empty());
  // A dict of 100,000 elements that is copied 1,000 times; a name of 100,000 letters.
  std::string copies = "\x80\x02}q\0("s;
  for (int i = 0; i < 100'000; ++i) copies += "K\1N"s;
  copies += "u0](";
  for (int i = 0; i < 1'000; ++i) copies += "ccollections\nOrderedDict\nh\0\x85R"s;
  CHECK_THAT(error_of_pickle(copies + "e."), ContainsSubstring("copies the same value again and again"));
  const std::string letters(100'000, 'x'), length("\xa0\x86\x01\0", 4);
  CHECK_THAT(error_of_pickle("\x80\x04X" + length + letters + "X" + length + letters + "\x93."),
             ContainsSubstring("more than 200 letters"));
  CHECK_THAT(error_of_pickle("\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x7f"s), ContainsSubstring("cut off"));
}

TEST_CASE("tensors stay within their storages") {
  const std::string one = "K\x02\x85"s, step = "K\x01\x85"s;
  CHECK(error_of_pickle(tensor_pickle(one, step, '\0', '\4')).empty());
  CHECK(error_of_pickle(tensor_pickle(one, step, '\2', '\4')).empty());
  for (const char offset : {'\3', '\x7f'})
    CHECK_THAT(error_of_pickle(tensor_pickle(one, step, offset, '\4')), ContainsSubstring("larger than its storage"));
  CHECK_THAT(error_of_pickle(tensor_pickle(one, "K\x04\x85"s, '\0', '\4')),
             ContainsSubstring("larger than its storage"));
  // Elements that are repeated take no memory.
  CHECK(error_of_pickle(tensor_pickle("K\x64\x85"s, "K\0\x85"s, '\0', '\4')).empty());
  CHECK(error_of_pickle(tensor_pickle("J\xff\xff\xff\x7f\x85"s, "K\0\x85"s, '\0', '\4')).empty());
  const std::string large = "J\xff\xff\xff\x7f"s, all_zero = "K\0K\0K\0\x87"s;
  CHECK_THAT(error_of_pickle(tensor_pickle(large + large + large + "\x87", all_zero, '\0', '\4')),
             ContainsSubstring("impossible size"));
  CHECK_THAT(error_of_pickle(tensor_pickle("J\xff\xff\xff\xff\x85"s, step, '\0', '\4')), ContainsSubstring("below 0"));
  CHECK_THAT(error_of_pickle(tensor_pickle(one, step, '\0', '\5')),
             ContainsSubstring("has 16 bytes of data/0, and a tensor needs 20"));
}

TEST_CASE("files that are none of torch.save's are errors that say so") {
  const TempDir dir;
  CHECK_THAT(error_reading(dir / "nothing"), ContainsSubstring("shown: does not exist"));
  CHECK_THAT(error_reading(dir.path()), ContainsSubstring("shown: is no file"));
  for (const std::string& content : {std::string(), std::string("PK"), std::string(10'000, 'x')}) {
    std::ofstream(dir / "file") << content;
    CHECK_THAT(error_reading(dir / "file"), ContainsSubstring("is no file of torch.save, or damaged"));
  }
}

// Most random changes of a whole file only reach the archive's checks: see mutated_files_test.cpp for these.
TEST_CASE("a damaged pickle in a good archive gives an error or another value, never a crash or endless memory") {
  const TempDir dir;
  write(dir / "whole", some_state());
  const std::string whole = bytes_of(dir / "whole");
  const std::size_t begin = whole.find("\x80\x02"), end = whole.find('.', whole.find("text"));
  REQUIRE(end != std::string::npos);
  const std::string pickle = whole.substr(begin, end + 1 - begin);
  std::mt19937 random(7);
  int errors = 0;
  for (int round = 0; round < 20'000; ++round) {
    write_archive(dir / "file", mutated(pickle, random), 24);
    errors += error_reading(dir / "file").empty() ? 0 : 1;
  }
  CHECK(errors > 1000);
}

TEST_CASE("a value that shares its parts again and again is not visited for ever") {
  c10::IValue value = at::ones({1});
  for (int depth = 0; depth < 60; ++depth) {
    c10::impl::GenericList twice(c10::AnyType::get());
    twice.push_back(value);
    twice.push_back(value);
    value = twice;
  }
  int tensors = 0;
  const auto twice_as_much = [&](const at::Tensor& tensor) {
    tensors += 1;
    return tensor * 2;
  };
  c10::IValue mapped = io::map_tensors(value, twice_as_much);
  while (mapped.isList()) mapped = c10::IValue(mapped.toListRef()[1]);
  CHECK(mapped.toTensor().item<float>() == 2);
  CHECK(tensors == 2);  // in the innermost list, once for each place
}
