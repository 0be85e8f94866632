#include "io/pickler.h"

#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include <ATen/Functions.h>
#include <c10/util/strides.h>

#include "io/json_text.h"
#include "io/scalar_types.h"
#include "io/unpickle.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

// The operations of protocol 2 that torch.load(weights_only=True) knows (PyTorch, torch/_weights_only_unpickler.py).
// Names, texts and containers are remembered, so that what comes again refers to them.
class Pickler {
 public:
  explicit Pickler(const std::string& shown) : shown_(shown) {}

  Pickle run(const c10::IValue& value) && {
    pickle_.text = "\x80\x02";
    put(value);
    pickle_.text += '.';
    if (pickle_.text.size() > kMostPickleBytes)
      fail("has " + std::to_string(pickle_.text.size()) + " bytes without its tensors, and at most " +
           std::to_string(kMostPickleBytes) + " are read back; keep many numbers or long texts in tensors");
    return std::move(pickle_);
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const { throw CheckpointError(shown_ + ": " + problem); }

  [[noreturn]] void refuse(const std::string& what, const std::string& instead) const {
    fail("cannot be written: value" + where_ + " is " + what + "; " + instead);
  }

  // ---- bytes

  template <class T>
  void put_number(T number) {
    pickle_.text.append(reinterpret_cast<const char*>(&number), sizeof number);
  }

  void remember(std::uint32_t& index) {
    index = remembered_++;
    pickle_.text += 'r';
    put_number(index);
  }

  void recall(std::uint32_t index) {
    pickle_.text += 'j';
    put_number(index);
  }

  // What `text` does, the first time; the same value again afterwards.
  void put_once(const std::string& text) {
    const auto [known, is_new] = texts_.try_emplace(text);
    if (!is_new) return recall(known->second);
    pickle_.text += text;
    remember(known->second);
  }

  void put_global(const std::string& module, const std::string& name) { put_once("c" + module + "\n" + name + "\n"); }

  // ---- plain values

  void put(const c10::IValue& value) {
    if (value.isNone())
      pickle_.text += 'N';
    else if (value.isTensor())
      put_tensor(value.toTensor());
    else if (value.isBool())
      pickle_.text += value.toBool() ? '\x88' : '\x89';
    else if (value.isInt())
      put_int(value.toInt());
    else if (value.isDouble())
      put_double(value.toDouble());
    else if (value.isString())
      put_text(value.toStringRef());
    else if (value.isComplexDouble())
      put_complex(value.toComplexDouble());
    else if (value.isDevice())
      put_device(value.toDevice());
    else if (value.isTuple() || value.isList() || value.isGenericDict())
      put_container(value);
    else
      refuse("of the kind " + value.tagKind(),
             "only None, numbers, texts, devices, tuples, lists, dicts and tensors can be");
  }

  void put_int(std::int64_t number) {
    if (number >= std::numeric_limits<std::int32_t>::min() && number <= std::numeric_limits<std::int32_t>::max()) {
      pickle_.text += 'J';
      put_number(static_cast<std::int32_t>(number));
    } else {
      pickle_.text += "\x8a\x08";
      put_number(number);
    }
  }

  void put_double(double number) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &number, sizeof bits);
    pickle_.text += 'G';
    put_number(__builtin_bswap64(bits));
  }

  static std::string unicode(const std::string& utf8) {
    const auto size = static_cast<std::uint32_t>(utf8.size());
    return "X" + std::string(reinterpret_cast<const char*>(&size), sizeof size) + utf8;
  }

  // What is no UTF-8 is `bytes` in Python, in the way in which it pickles them: each as the character of that number.
  void put_text(const std::string& text) {
    if (text.size() > kMostPickleBytes)
      refuse("a text of " + std::to_string(text.size()) + " bytes", "keep it in a tensor of bytes");
    if (is_utf8(text)) return put_once(unicode(text));
    std::string characters;
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte >= 0x80) characters += static_cast<char>(0xC0 | byte >> 6);
      characters += static_cast<char>(byte >= 0x80 ? 0x80 | (byte & 0x3F) : byte);
    }
    put_global("_codecs", "encode");
    put_once(unicode(characters));
    put_once(unicode("latin1"));
    pickle_.text += "\x86R";
  }

  void put_complex(c10::complex<double> number) {
    put_global("builtins", "complex");
    put_double(number.real());
    put_double(number.imag());
    pickle_.text += "\x86R";
  }

  void put_device(const c10::Device& device) {
    put_global("torch", "device");
    put_once(unicode(device.str()));
    pickle_.text += "\x85R";
  }

  // ---- containers

  void put_container(const c10::IValue& value) {
    const void* const container = value.internalToPointer();
    if (!open_.insert(container).second) refuse("within itself", "a value cannot hold itself");
    if (const auto known = containers_.find(container); known != containers_.end()) {
      recall(known->second);
    } else {
      if (++depth_ >= kDeepestValues) refuse("nested " + std::to_string(kDeepestValues) + " deep", "nest less deeply");
      value.isTuple() ? put_tuple(value) : value.isGenericDict() ? put_dict(value) : put_list(value);
      depth_ -= 1;
    }
    open_.erase(container);
  }

  template <class Items>
  void put_items(const Items& items) {
    std::size_t index = 0;
    pickle_.text += '(';
    for (const c10::IValue& item : items)
      within(std::string(1, '[').append(std::to_string(index++)).append(1, ']'), [&] { put(item); });
  }

  // `step` is the place of what `put_it` puts, in Python's words.
  template <class Put>
  void within(const std::string& step, const Put& put_it) {
    const std::size_t before = where_.size();
    where_ += step;
    put_it();
    where_.resize(before);
  }

  void put_tuple(const c10::IValue& value) {
    put_items(value.toTupleRef().elements());
    pickle_.text += 't';
    remember(containers_[value.internalToPointer()]);
  }

  void put_list(const c10::IValue& value) {
    pickle_.text += ']';
    remember(containers_[value.internalToPointer()]);
    put_items(value.toListRef());
    pickle_.text += 'e';
  }

  void put_dict(const c10::IValue& value) {
    pickle_.text += '}';
    remember(containers_[value.internalToPointer()]);
    pickle_.text += '(';
    for (const auto& item : value.toGenericDict()) {
      const c10::IValue& key = item.key();
      if (!is_key(key)) refuse("a dict with a key of the kind " + key.tagKind(), "use texts or numbers as keys");
      within(step_of(key), [&] {
        put(key);
        put(item.value());
      });
    }
    pickle_.text += 'u';
  }

  static std::string step_of(const c10::IValue& key) {
    if (key.isString()) return std::string("['").append(as_utf8(key.toStringRef())).append("']");
    return key.isInt() ? "[" + std::to_string(key.toInt()) + "]" : "[" + key.tagKind() + "]";
  }

  // ---- tensors

  void check(const at::Tensor& tensor) const {
    if (!tensor.defined()) refuse("an undefined tensor", "leave it out");
    if (tensor.is_quantized())
      refuse("a quantized tensor (" + std::string(c10::toString(tensor.scalar_type())) + ")",
             "save its int_repr() with scale and zero point, or its dequantize()");
    if (tensor.layout() != at::kStrided || tensor.is_nested()) refuse("a tensor that is not dense", "save its parts");
    if (tensor.is_meta() || !tensor.has_storage()) refuse("a tensor without memory", "leave it out");
    if (python_name(tensor.scalar_type()).empty())
      refuse("a tensor of the type " + std::string(c10::toString(tensor.scalar_type())), "convert it");
  }

  void put_tensor(const at::Tensor& tensor) {
    check(tensor);
    const auto [known, is_new] = tensors_.try_emplace(tensor.unsafeGetTensorImpl());
    if (!is_new) return recall(known->second);
    const at::Tensor plain = tensor.detach().resolve_conj().resolve_neg();
    const auto strides = dense_strides(plain);
    const bool has_name = !storage_name(tensor.scalar_type()).empty();
    put_global("torch._utils", has_name ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3");
    pickle_.text += '(';
    put_storage(plain, strides);
    put_int(0);
    put_sizes(plain.sizes());
    put_sizes(strides);
    pickle_.text += '\x89';  // requires_grad
    put_global("collections", "OrderedDict");
    pickle_.text += ")R";  // hooks
    if (!has_name) put_global("torch", python_name(tensor.scalar_type()));
    pickle_.text += "tR";
    remember(known->second);
  }

  static std::vector<std::int64_t> dense_strides(const at::Tensor& tensor) {
    if (tensor.is_non_overlapping_and_dense()) return tensor.strides().vec();
    const auto strides = c10::contiguous_strides(tensor.sizes());
    return {strides.begin(), strides.end()};
  }

  void put_sizes(at::IntArrayRef sizes) {
    pickle_.text += '(';
    for (const std::int64_t size : sizes) put_int(size);
    pickle_.text += 't';
  }

  // Tensors of one type that fill the same memory have one.
  void put_storage(const at::Tensor& tensor, const std::vector<std::int64_t>& strides) {
    const std::string name = storage_name(tensor.scalar_type());
    const bool fills =
        tensor.storage_offset() == 0 && tensor.storage().nbytes() == tensor.nbytes() && tensor.strides() == strides;
    const auto of = std::pair(static_cast<const void*>(tensor.storage().unsafeGetStorageImpl()), tensor.scalar_type());
    if (const auto known = storages_.find(of); fills && known != storages_.end()) return recall(known->second);
    pickle_.text += '(';
    put_once(unicode("storage"));
    name.empty() ? put_global("torch.storage", "UntypedStorage") : put_global("torch", name);
    pickle_.text += unicode(std::to_string(pickle_.storages.size()));
    put_once(unicode("cpu"));
    put_int(name.empty() ? static_cast<std::int64_t>(tensor.nbytes()) : tensor.numel());
    pickle_.text += "tQ";
    pickle_.storages.push_back({tensor, strides});
    std::uint32_t index = 0;
    remember(index);
    if (fills) storages_.emplace(of, index);
  }

  const std::string& shown_;
  Pickle pickle_;
  std::string where_;  // of what is being put, in the value
  std::int64_t depth_ = 0;
  std::uint32_t remembered_ = 0;
  std::unordered_map<std::string, std::uint32_t> texts_;
  std::unordered_map<const void*, std::uint32_t> containers_, tensors_;
  std::set<const void*> open_;  // containers around what is being put
  std::map<std::pair<const void*, at::ScalarType>, std::uint32_t> storages_;
};

}  // namespace

at::Tensor StoredElements::dense() const {
  const at::Tensor plain = as_plain(tensor).cpu();
  if (plain.strides() == strides) return plain;
  return at::empty_strided(plain.sizes(), strides, plain.options()).copy_(plain);
}

Pickle pickle_of(const c10::IValue& value, const std::string& shown) { return Pickler(shown).run(value); }

}  // namespace tandem::io
