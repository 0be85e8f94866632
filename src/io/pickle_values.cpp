// Makes values of a pickle's nodes.
#include <optional>
#include <unordered_map>
#include <utility>

#include <ATen/Functions.h>

#include "io/pickle_nodes.h"

namespace tandem::io {
namespace {

// Each node becomes a value once.
class Converter {
 public:
  explicit Converter(const FindStorage& find_storage) : find_storage_(find_storage) {}

  c10::IValue convert(const PickleNode& node) {
    const auto [known, is_new] = known_.try_emplace(&node);
    if (!is_new) {
      if (!known->second) fail_pickle("has a value that holds itself");
      return *known->second;
    }
    if (depth_ == kDeepestValues) fail_pickle("has values that are nested too deeply");
    depth_ += 1;
    c10::IValue value = std::visit([this](const auto& one) { return make(one); }, node.value);
    depth_ -= 1;
    known_[&node] = value;
    return value;
  }

 private:
  static c10::IValue make(std::monostate) { return {}; }
  template <class T>
  static c10::IValue make(const T& plain) {
    return plain;
  }
  static c10::IValue make(const PickledGlobal& global) { fail_foreign(global.name); }
  static c10::IValue make(PickledLong) { fail_pickle("has a whole number of more than 64 bits"); }
  static c10::IValue make(const std::unique_ptr<PickledBytes>&) { fail_pickle("has a storage without a tensor"); }
  static c10::IValue make(const std::unique_ptr<NumpyType>& type) { fail_foreign("numpy.dtype('" + type->name + "')"); }
  static c10::IValue make(const std::unique_ptr<c10::IValue>& value) { return *value; }

  c10::IValue make(const std::unique_ptr<PickledArray>& array) {
    constexpr std::size_t kMostCopied = 1 << 30;
    if (!array->bytes) fail_pickle("has an array of NumPy's without its numbers");
    copied_ += array->bytes->size();
    if (copied_ > kMostCopied) fail_pickle("copies the same value again and again");
    return numpy_array(array->type, array->shape, array->fortran, *array->bytes);
  }

  c10::IValue make(const std::unique_ptr<PickledTensor>& tensor) {
    const at::Tensor bytes = find_storage_(tensor->storage.key, tensor->storage.storage_bytes);
    const auto size = static_cast<std::int64_t>(c10::elementSize(tensor->type));
    const auto begin = bytes.storage_offset() + static_cast<std::int64_t>(tensor->storage.begin);
    if (begin % size != 0) fail_pickle("has a tensor that begins between two elements");
    at::Tensor made = at::empty({0}, tensor->type)
                          .set_(bytes.storage(), begin / size + tensor->offset, tensor->sizes, tensor->strides);
    if (tensor->conjugate) made = made.conj().resolve_conj();
    return tensor->negative ? made.neg() : made;
  }

  c10::IValue make(const PickledTuple& tuple) {
    std::vector<c10::IValue> items;
    for (const PickleNode* item : tuple.items) items.push_back(convert(*item));
    return c10::ivalue::Tuple::create(std::move(items));
  }

  c10::IValue make(const PickledList& list) {
    c10::impl::GenericList items(c10::AnyType::get());
    for (const PickleNode* item : list.items) items.push_back(convert(*item));
    return items;
  }

  c10::IValue make(const PickledDict& dict) {
    c10::impl::GenericDict items(c10::AnyType::get(), c10::AnyType::get());
    if (dict.items.size() % 2 != 0) fail_pickle("has a dict with a key that has no value");
    for (std::size_t i = 0; i < dict.items.size(); i += 2) {
      const c10::IValue key = convert(*dict.items[i]);
      if (!is_key(key)) fail_pickle("has a dict with a key that is neither text nor a number");
      items.insert_or_assign(key, convert(*dict.items[i + 1]));
    }
    return items;
  }

  const FindStorage& find_storage_;
  std::unordered_map<const PickleNode*, std::optional<c10::IValue>> known_;  // nothing: is being made
  int depth_ = 0;
  std::size_t copied_ = 0;  // bytes
};

}  // namespace

c10::IValue value_of(const PickleNode& node, const FindStorage& find_storage) {
  return Converter(find_storage).convert(node);
}

}  // namespace tandem::io
