// PyTorch, torch/serialization.py, _legacy_save: pickles of a number that marks the format, of its version, of the
// machine, of the value, and of its storages' keys; then each storage's number of elements, and the elements.
#include "io/old_pickle_file.h"

#include <cstring>
#include <map>
#include <string>

#include "io/file_bytes.h"
#include "io/unpickle.h"

namespace tandem::io {
namespace {

// 0x1950a86a20f9469cfc6c as a pickle, without its first bytes, which depend on the protocol.
constexpr std::string_view kMark{"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 13};

[[noreturn]] void fail(const std::string& problem) { throw UnpickleError(problem); }

// The next of the pickles, without tensors.
c10::IValue take_plain(std::string_view& rest) {
  const Unpickled pickle(rest.substr(0, kMostPickleBytes));
  rest.remove_prefix(pickle.bytes());
  return pickle.value([](const std::string&, std::uint64_t) -> at::Tensor { fail("has a tensor in its beginning"); });
}

void check_version(const c10::IValue& version) {
  if (!version.isInt() || version.toInt() != 1001) fail("is of a version of torch.save that is not known");
}

void check_machine(const c10::IValue& machine) {
  if (!machine.isGenericDict() || !machine.toGenericDict().contains("little_endian"))
    fail("does not say of which machine it is");
  const c10::IValue little = machine.toGenericDict().at("little_endian");
  if (!little.isBool() || !little.toBool()) fail("is of a machine with another order of bytes");
}

// By key, where they lie in the file.
std::map<std::string, at::Tensor> take_storages(std::string_view& rest, const at::Tensor& file,
                                                const std::map<std::string, PickledStorage>& known,
                                                const c10::IValue& keys) {
  if (!keys.isList()) fail("does not say in which order its storages are");
  std::map<std::string, at::Tensor> storages;
  for (const c10::IValue& key : keys.toListRef()) {
    if (!key.isString() || !known.contains(key.toStringRef())) fail("has a storage that no tensor is in");
    const auto [bytes, element_bytes] = known.at(key.toStringRef());
    std::uint64_t elements = 0;
    if (rest.size() < sizeof elements || rest.size() - sizeof elements < bytes) fail("is cut off");
    std::memcpy(&elements, rest.data(), sizeof elements);
    if (elements != bytes / element_bytes)
      fail("has " + std::to_string(elements) + " elements of a storage, and its tensors need " +
           std::to_string(bytes / element_bytes));
    rest.remove_prefix(sizeof elements);
    storages.emplace(key.toStringRef(), part_of(file, file.nbytes() - rest.size(), bytes, kLargestElement));
    rest.remove_prefix(bytes);
  }
  return storages;
}

}  // namespace

bool is_of_old_format(std::string_view begin) { return begin.substr(0, 32).find(kMark) != std::string_view::npos; }

c10::IValue old_pickle_in(const at::Tensor& file) {
  std::string_view rest(static_cast<const char*>(file.const_data_ptr()), file.nbytes());
  rest.remove_prefix(Unpickled(rest.substr(0, 64)).bytes());  // the mark
  check_version(take_plain(rest));
  check_machine(take_plain(rest));
  const Unpickled value(rest.substr(0, kMostPickleBytes));
  rest.remove_prefix(value.bytes());
  const c10::IValue keys = take_plain(rest);
  const auto storages = take_storages(rest, file, value.storages(), keys);
  return value.value([&](const std::string& key, std::uint64_t) {
    const auto found = storages.find(key);
    if (found == storages.end()) fail("has no storage " + key + ", which a tensor needs");
    return found->second;
  });
}

}  // namespace tandem::io
