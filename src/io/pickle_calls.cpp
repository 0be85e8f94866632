// What Python's functions make that a state of PyTorch's is made of.
#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include <c10/core/Device.h>

#include "io/pickle_nodes.h"
#include "io/scalar_types.h"

namespace tandem::io {
namespace {

using Made = std::variant<PickleNode*, PickleNode>;

// Of what can be named again and again: there are only so many bytes to name it with.
constexpr std::size_t kMostCopied = 256 << 20;  // bytes

void count_copy(std::size_t bytes, std::size_t& copied) {
  copied += bytes;
  if (copied > kMostCopied) fail_pickle("copies the same value again and again");
}

template <class T>
Made made(T value) {
  return PickleNode{std::make_unique<T>(std::move(value))};
}

std::vector<std::int64_t> whole_numbers(PickleNode& node) {
  const PickleNodes& items = as<PickledTuple>(node, "a tuple").items;
  // Of more dimensions LibTorch's tensors are not made either; and a tuple can be named many times.
  if (items.size() > 64) fail_pickle("has a tensor of more than 64 dimensions");
  std::vector<std::int64_t> numbers;
  for (PickleNode* item : items) {
    numbers.push_back(as<std::int64_t>(*item, "a whole number"));
    if (numbers.back() < 0) fail_pickle("has a tensor with a size or stride below 0");
  }
  return numbers;
}

// ---- tensors

void check_fits(const PickledTensor& tensor) {
  constexpr std::int64_t kMostOverlapping = std::int64_t{1} << 28;
  const auto elements = static_cast<std::int64_t>(tensor.storage.bytes / c10::elementSize(tensor.type));
  std::int64_t last = tensor.offset, count = 1, different = 1;  // `different`: without those that are repeated
  bool overflows = false;
  const bool empty = std::find(tensor.sizes.begin(), tensor.sizes.end(), 0) != tensor.sizes.end();
  for (std::size_t i = 0; i < tensor.sizes.size(); ++i) {
    const std::int64_t size = std::max<std::int64_t>(tensor.sizes[i], 1);
    std::int64_t reach = 0;
    overflows = overflows || __builtin_mul_overflow(size - 1, tensor.strides[i], &reach) ||
                __builtin_add_overflow(last, reach, &last) || __builtin_mul_overflow(count, size, &count);
    if (!overflows && tensor.strides[i] > 0) different *= size;
  }
  if (overflows || count > std::numeric_limits<std::int64_t>::max() / 16)
    fail_pickle("has a tensor of an impossible size");
  if ((!empty && last >= elements) || (empty && tensor.offset > elements))
    fail_pickle("has a tensor that is larger than its storage");
  if (!empty && different > std::max(elements, kMostOverlapping))
    fail_pickle("has a tensor whose elements overlap so that there are endlessly many; save its contiguous()");
}

std::optional<at::ScalarType> type_named(PickleNode& node) {
  const auto* const global = std::get_if<PickledGlobal>(&node.value);
  if (!global || !global->name.starts_with("torch.")) fail_pickle("has a tensor without a type");
  const auto type = type_of_python(std::string_view(global->name).substr(6));
  if (!type) fail_pickle("has a tensor of the unknown type '" + global->name + "'");
  return type;
}

void take_metadata(PickledTensor& tensor, PickleNode& node) {
  if (std::holds_alternative<std::monostate>(node.value)) return;
  const PickleNodes& items = as<PickledDict>(node, "a dict").items;
  for (std::size_t i = 0; i + 1 < items.size(); i += 2) {
    const std::string& name = as<std::string>(*items[i], "a text");
    const bool is_set = as<bool>(*items[i + 1], "true or false");
    if (name == "conj")
      tensor.conjugate = is_set;
    else if (name == "neg")
      tensor.negative = is_set;
    else
      fail_pickle("has a tensor with '" + name + "', which Tandem does not know");
  }
}

// (storage, offset, sizes, strides[, requires_grad, backward_hooks[, type][, metadata]])
Made rebuild_tensor(const PickleNodes& arguments, bool names_type) {
  if (arguments.size() < (names_type ? 7u : 4u)) fail_pickle("has a tensor that lacks its sizes");
  const auto& storage = *as<std::unique_ptr<PickledBytes>>(*arguments[0], "a storage");
  const auto type = names_type ? type_named(*arguments[6]) : storage.type.value_or(at::kByte);
  PickledTensor tensor{.type = *type,
                       .storage = storage,
                       .offset = as<std::int64_t>(*arguments[1], "an offset"),
                       .sizes = whole_numbers(*arguments[2]),
                       .strides = whole_numbers(*arguments[3])};
  if (tensor.offset < 0 || tensor.sizes.size() != tensor.strides.size())
    fail_pickle("has a tensor whose offset, sizes and strides do not go together");
  if (const std::size_t metadata = names_type ? 7 : 6; arguments.size() > metadata)
    take_metadata(tensor, *arguments[metadata]);
  check_fits(tensor);
  return made(std::move(tensor));
}

// (function, class, its arguments, attributes): a tensor that somebody has given attributes, which do not matter.
Made rebuild_from_type(const PickleNodes& arguments, std::size_t& copied) {
  if (arguments.size() < 3) fail_pickle("has a tensor that lacks its class");
  const auto* const function = std::get_if<PickledGlobal>(&arguments[0]->value);
  const auto* const type = std::get_if<PickledGlobal>(&arguments[1]->value);
  if (!function || !type) fail_pickle("has a tensor that lacks its class");
  if (!function->name.starts_with("torch._utils._rebuild_")) fail_foreign(function->name);
  for (const char* plain : {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"})
    if (type->name == plain)
      return call_of_python(function->name, as<PickledTuple>(*arguments[2], "a tuple of arguments").items, copied);
  fail_foreign(type->name);
}

// ---- other values

Made dict_of(const PickleNodes& arguments, std::size_t& copied) {
  if (arguments.empty()) return PickleNode{PickledDict()};
  if (auto* dict = std::get_if<PickledDict>(&arguments[0]->value)) {
    count_copy(dict->items.size() * sizeof(PickleNode*), copied);
    return PickleNode{*dict};
  }
  PickledDict dict;  // of pairs, as Python 2 has it
  for (PickleNode* item : as<PickledList>(*arguments[0], "a dict").items) {
    auto* const list = std::get_if<PickledList>(&item->value);
    const PickleNodes& pair = list ? list->items : as<PickledTuple>(*item, "a pair").items;
    if (pair.size() != 2) fail_pickle("has a dict of what are no pairs");
    dict.items.insert(dict.items.end(), pair.begin(), pair.end());
  }
  count_copy(dict.items.size() * sizeof(PickleNode*), copied);
  return PickleNode{std::move(dict)};
}

// Bytes, which protocol 2 has as the characters of these numbers.
Made bytes_of(const PickleNodes& arguments, std::size_t& copied) {
  if (arguments.size() != 2 || as<std::string>(*arguments[1], "a text") != "latin1") fail_foreign("_codecs.encode");
  const std::string& text = as<std::string>(*arguments[0], "a text");
  count_copy(text.size(), copied);
  std::string bytes;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool two = (byte == 0xC2 || byte == 0xC3) && i + 1 < text.size();
    if (byte >= 0x80 && !two) fail_pickle("has bytes that are none");
    bytes += static_cast<char>(two ? (byte & 3) << 6 | (text[++i] & 0x3F) : byte);
  }
  return PickleNode{std::move(bytes)};
}

double real_number(PickleNode& node) {
  const auto* const whole = std::get_if<std::int64_t>(&node.value);
  return whole ? static_cast<double>(*whole) : as<double>(node, "a number");
}

c10::Device device_of(const PickleNodes& arguments) {
  const std::string& name = as<std::string>(*arguments[0], "a device's name");
  try {
    if (arguments.size() == 1) return c10::Device(name);
    return c10::Device(name + ":" + std::to_string(as<std::int64_t>(*arguments[1], "a device's number")));
  } catch (const c10::Error&) {
    fail_pickle("has the unknown device '" + name + "'");
  }
}

// ---- NumPy's

// (buffer, type, shape, order), of protocol 5
Made array_of_buffer(const PickleNodes& arguments) {
  if (arguments.size() != 4) fail_pickle("has an array of NumPy's that lacks its type");
  return made(PickledArray{.type = *as<std::unique_ptr<NumpyType>>(*arguments[1], "a type of NumPy's"),
                           .shape = whole_numbers(*arguments[2]),
                           .fortran = as<std::string>(*arguments[3], "an order") == "F",
                           .bytes = &as<std::string>(*arguments[0], "bytes")});
}

std::optional<Made> call_of_numpy(const std::string& name, const PickleNodes& arguments) {
  if (name == "numpy.dtype" && !arguments.empty()) return made(NumpyType{as<std::string>(*arguments[0], "a type")});
  // NumPy 2 has put an underscore before the module.
  const auto is = [&](const char* function) {
    return name == std::string("numpy.core.") + function || name == std::string("numpy._core.") + function;
  };
  if (is("multiarray.scalar") && arguments.size() == 2)
    return made(numpy_scalar(*as<std::unique_ptr<NumpyType>>(*arguments[0], "a type of NumPy's"),
                             as<std::string>(*arguments[1], "bytes")));
  if (is("multiarray._reconstruct")) return made(PickledArray());
  if (is("numeric._frombuffer")) return array_of_buffer(arguments);
  return std::nullopt;
}

// (version, shape, type, whether in Fortran's order, bytes)
void set_array(PickledArray& array, PickleNode& state) {
  const PickleNodes& items = as<PickledTuple>(state, "a tuple").items;
  if (items.size() != 5) fail_pickle("has an array of NumPy's of an unknown version");
  array.shape = whole_numbers(*items[1]);
  array.type = *as<std::unique_ptr<NumpyType>>(*items[2], "a type of NumPy's");
  array.fortran = as<bool>(*items[3], "true or false");
  if (!std::holds_alternative<std::string>(items[4]->value))
    fail_pickle("has an array of NumPy's of the type '" + array.type.name + "', which is none of numbers");
  array.bytes = &std::get<std::string>(items[4]->value);
}

std::optional<at::ScalarType> storage_type(const std::string& name) {
  if (name == "torch.storage.UntypedStorage" || name == "torch.UntypedStorage") return std::nullopt;
  const std::size_t dot = name.rfind('.');
  const std::string module = name.substr(0, dot);
  const auto type = type_of_storage(std::string_view(name).substr(dot + 1));
  if (!type && name.ends_with("Storage") && name.starts_with("torch.Q"))
    fail_pickle("has a quantized tensor (" + name + "), which Tandem does not read; save its dequantize()");
  if (!type || (module != "torch" && module != "torch.cuda"))
    fail_pickle("has a storage of the unknown kind '" + name + "'");
  return type;
}

}  // namespace

PickledBytes pickled_storage(const PickledTuple& description, std::map<std::string, PickledStorage>& storages) {
  const PickleNodes& items = description.items;
  if (items.size() > 1 && as<std::string>(*items[0], "a text") == "module")  // a whole model, before PyTorch 1.6
    fail_foreign(as<PickledGlobal>(*items[1], "a class").name);
  if (items.size() < 5 || items.size() > 6 || as<std::string>(*items[0], "a text") != "storage")
    fail_pickle("has a pickle that refers to what is no storage");
  const auto* const kind = std::get_if<PickledGlobal>(&items[1]->value);
  if (!kind) fail_pickle("has a storage without a kind");
  const auto type = storage_type(kind->name);
  const std::uint64_t size = type ? c10::elementSize(*type) : 1;
  const auto bytes_of = [size](PickleNode& node) {
    const auto elements = as<std::int64_t>(node, "a number of elements");
    if (elements < 0 || static_cast<std::uint64_t>(elements) > (std::uint64_t{1} << 62) / size)
      fail_pickle("has a storage of an impossible size");
    return static_cast<std::uint64_t>(elements) * size;
  };
  const std::uint64_t all = bytes_of(*items[4]);
  PickledBytes storage{
      .type = type, .key = as<std::string>(*items[2], "a storage's name"), .storage_bytes = all, .bytes = all};
  const auto [known, is_new] = storages.try_emplace(storage.key, PickledStorage{all, size});
  if (known->second.bytes != all) fail_pickle("has the storage " + storage.key + " with two sizes");
  if (items.size() < 6 || std::holds_alternative<std::monostate>(items[5]->value)) return storage;
  const PickleNodes& part = as<PickledTuple>(*items[5], "a part of a storage").items;  // (key, offset, elements)
  if (part.size() != 3) fail_pickle("has a part of a storage that lacks its place");
  storage.begin = bytes_of(*part[1]);
  storage.bytes = bytes_of(*part[2]);
  if (storage.begin > all || storage.bytes > all - storage.begin)
    fail_pickle("has a part of a storage that is larger than the storage");
  return storage;
}

std::variant<PickleNode*, PickleNode> call_of_python(const std::string& name, const PickleNodes& arguments,
                                                     std::size_t& copied) {
  if (name == "torch._utils._rebuild_tensor" || name == "torch._utils._rebuild_tensor_v2")
    return rebuild_tensor(arguments, false);
  if (name == "torch._utils._rebuild_tensor_v3") return rebuild_tensor(arguments, true);
  const bool is_parameter =
      name == "torch._utils._rebuild_parameter" || name == "torch._utils._rebuild_parameter_with_state";
  if (is_parameter && !arguments.empty()) {
    as<std::unique_ptr<PickledTensor>>(*arguments[0], "a tensor");
    return arguments[0];
  }
  if (name == "torch._tensor._rebuild_from_type_v2") return rebuild_from_type(arguments, copied);
  if (name == "torch._utils._rebuild_qtensor")
    fail_pickle("has a quantized tensor, which Tandem does not read; save its dequantize()");
  if (name == "torch.serialization._get_layout" || name == "torch._utils._rebuild_sparse_tensor")
    fail_pickle("has a sparse tensor, which Tandem does not read; save its to_dense()");
  const bool is_dict = name == "collections.OrderedDict" || name == "collections.Counter";
  if (is_dict && arguments.size() < 2) return dict_of(arguments, copied);
  if (name == "torch.Size" && arguments.size() == 1) {
    as<PickledTuple>(*arguments[0], "a tuple");
    return arguments[0];
  }
  if (name == "torch.device" && (arguments.size() == 1 || arguments.size() == 2))
    return made(c10::IValue(device_of(arguments)));
  if (name == "builtins.complex" && arguments.size() == 2)
    return made(c10::IValue(c10::complex<double>(real_number(*arguments[0]), real_number(*arguments[1]))));
  if (name == "_codecs.encode") return bytes_of(arguments, copied);
  if (name == "builtins.bytes" && arguments.empty()) return PickleNode{std::string()};
  if (name == "builtins.bytearray" && arguments.size() == 1) {
    as<std::string>(*arguments[0], "bytes");
    return arguments[0];
  }
  if (auto of_numpy = call_of_numpy(name, arguments)) return std::move(*of_numpy);
  fail_foreign(name);
}

void set_state(PickleNode& object, PickleNode& state) {
  if (auto* array = std::get_if<std::unique_ptr<PickledArray>>(&object.value)) return set_array(**array, state);
  if (auto* type = std::get_if<std::unique_ptr<NumpyType>>(&object.value)) {
    const PickleNodes& items = as<PickledTuple>(state, "a tuple").items;  // (version, order of bytes …)
    (*type)->big_endian = items.size() > 1 && as<std::string>(*items[1], "an order of bytes") == ">";
    return;
  }
  // Attributes of an OrderedDict, in which PyTorch keeps the versions of modules, do not matter.
  as<PickledDict>(object, "an OrderedDict");
}

}  // namespace tandem::io
