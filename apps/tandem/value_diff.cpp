#include "value_diff.h"

#include <algorithm>
#include <limits>

#include <ATen/Functions.h>
#include <c10/util/StringUtil.h>

#include "io/json_text.h"
#include "io/scalar_types.h"

namespace tandem_tool {

using Json = nlohmann::json;

void Partings::add(Parting parting) {
  constexpr std::size_t kMost = 100'000;
  if (all_.size() == kMost) {
    ++left_out_;
    return;
  }
  parting.step = step;
  parting.checkpoint = checkpoint;
  parting.file = file;
  all_.push_back(std::move(parting));
}

at::Tensor element_bytes(const at::Tensor& tensor) {
  const at::Tensor plain = tandem::io::as_plain(tensor.resolve_conj().resolve_neg());
  return plain.contiguous().view(-1).view(at::kByte);
}

namespace {

std::string place_of(std::int64_t index, at::IntArrayRef shape) {
  if (shape.empty()) return {};
  std::string text;
  for (auto dim = static_cast<std::int64_t>(shape.size()) - 1; dim >= 0; --dim) {
    const std::int64_t size = std::max<std::int64_t>(shape[static_cast<std::size_t>(dim)], 1);
    text = std::to_string(index % size) + (text.empty() ? "" : ", ") + text;
    index /= size;
  }
  return "[" + text + "]";
}

std::string field(const std::string& within, const std::string& name) {
  return within.empty() ? name : within + "." + name;
}

std::string item(const std::string& within, std::size_t index) { return within + "[" + std::to_string(index) + "]"; }

std::string quoted(const std::string& text) { return tandem::io::shown_json(Json(text)); }

// What is around `at`.
std::string excerpt(const std::string& text, std::size_t at) {
  constexpr std::size_t kBefore = 16, kMost = 48;
  if (text.size() <= kMost) return quoted(text);
  const std::size_t begin = at > kBefore ? at - kBefore : 0;
  return (begin > 0 ? "..." : "") + quoted(text.substr(begin, kMost)) + (begin + kMost < text.size() ? "..." : "");
}

// What all kinds of values share.
class Comparison {
 public:
  Comparison(Partings& partings, const LeavesOut& leaves_out) : partings_(partings), leaves_out_(leaves_out) {}

 protected:
  bool leaves_out(const std::string& within, const std::string& name) const {
    return leaves_out_ && leaves_out_(within, name);
  }

  void add(Parting::Kind kind, const std::string& name, const std::string& first = {}, const std::string& second = {}) {
    partings_.add({.kind = kind, .name = name, .first = first, .second = second});
  }

  void texts(const std::string& name, const std::string& first, const std::string& second) {
    if (first == second) return;
    const auto at = static_cast<std::size_t>(
        std::mismatch(first.begin(), first.end(), second.begin(), second.end()).first - first.begin());
    const bool short_ones = std::max(first.size(), second.size()) <= 48;
    partings_.add({.name = name,
                   .index = short_ones ? std::string() : item({}, at),
                   .first = excerpt(first, at),
                   .second = excerpt(second, at)});
  }

  // Numbers of one type.
  template <class Number>
  void numbers(const std::string& name, Number first, Number second, at::ScalarType type) {
    const auto difference = compare_elements(&first, &second, sizeof first, type);
    if (!difference) return;
    partings_.add({.name = name,
                   .index = difference->part,
                   .first = difference->first,
                   .second = difference->second,
                   .elements = *difference});
  }

  Partings& partings_;

 private:
  const LeavesOut& leaves_out_;
};

class ValueComparison : public Comparison {
 public:
  using Comparison::Comparison;

  void compare(const std::string& name, const c10::IValue& first, const c10::IValue& second) {
    const std::string kind = kind_of(first);
    if (kind != kind_of(second)) return add(Parting::Kind::type, name, shown(first), shown(second));
    if (first.isTensor()) return tensors(name, first.toTensor(), second.toTensor());
    if (first.isGenericDict() || first.isTuple() || first.isList()) return containers(name, first, second);
    if (first.isBool()) return numbers(name, first.toBool(), second.toBool(), at::kBool);
    if (first.isInt()) return numbers(name, first.toInt(), second.toInt(), at::kLong);
    if (first.isDouble()) return numbers(name, first.toDouble(), second.toDouble(), at::kDouble);
    if (first.isComplexDouble())
      return numbers(name, first.toComplexDouble(), second.toComplexDouble(), at::kComplexDouble);
    if (first.isString()) return texts(name, first.toStringRef(), second.toStringRef());
    if (shown(first) != shown(second)) add(Parting::Kind::value, name, shown(first), shown(second));
  }

 private:
  static std::string kind_of(const c10::IValue& value) {
    if (value.isTensor()) return "a tensor";
    if (value.isGenericDict()) return "a dict";
    if (value.isTuple()) return "a tuple";
    if (value.isList()) return "a list";
    if (value.isString()) return "text";
    if (value.isNone()) return "None";
    return value.tagKind();
  }

  static std::string shown(const c10::IValue& value) {
    if (value.isString()) return "the text " + excerpt(value.toStringRef(), 0);
    if (value.isBool() || value.isInt() || value.isDouble() || value.isDevice())
      return kind_of(value) + " " + c10::str(value);
    return kind_of(value);
  }

  void containers(const std::string& name, const c10::IValue& first, const c10::IValue& second) {
    // They can share parts, so that a small file can have endlessly many.
    if (!compared_.emplace(first.internalToPointer(), second.internalToPointer()).second) return;
    if (first.isGenericDict()) return dicts(name, first.toGenericDict(), second.toGenericDict());
    first.isTuple() ? sequences(name, first.toTupleRef().elements(), second.toTupleRef().elements())
                    : sequences(name, first.toListRef(), second.toListRef());
  }

  static std::string name_of(const std::string& within, const c10::IValue& key) {
    return key.isString() ? field(within, key.toStringRef()) : within + "[" + c10::str(key) + "]";
  }

  using Dict = c10::impl::GenericDict;
  void dicts(const std::string& name, const Dict& first, const Dict& second) {
    const auto is_left_out = [&](const c10::IValue& key) {
      return key.isString() && leaves_out(name, key.toStringRef());
    };
    for (const auto& entry : first) {
      if (is_left_out(entry.key())) continue;
      const std::string its_name = name_of(name, entry.key());
      const auto other = second.find(entry.key());
      if (other == second.end())
        add(Parting::Kind::only_in_first, its_name);
      else
        compare(its_name, entry.value(), other->value());
    }
    for (const auto& entry : second)
      if (!is_left_out(entry.key()) && !first.contains(entry.key()))
        add(Parting::Kind::only_in_second, name_of(name, entry.key()));
  }

  void sequences(const std::string& name, at::ArrayRef<c10::IValue> first, at::ArrayRef<c10::IValue> second) {
    if (first.size() != second.size())
      add(Parting::Kind::size, name, std::to_string(first.size()) + " values",
          std::to_string(second.size()) + " values");
    for (std::size_t i = 0; i < std::min(first.size(), second.size()); ++i) compare(item(name, i), first[i], second[i]);
  }

  // What is repeated in both takes no memory.
  static at::Tensor narrowed(at::Tensor tensor, const at::Tensor& one, const at::Tensor& other) {
    for (std::int64_t dim = 0; dim < tensor.dim(); ++dim)
      if (tensor.size(dim) > 1 && one.stride(dim) == 0 && other.stride(dim) == 0) tensor = tensor.narrow(dim, 0, 1);
    return tensor;
  }

  void tensors(const std::string& name, const at::Tensor& first, const at::Tensor& second) {
    const auto type = first.scalar_type();
    if (type != second.scalar_type())
      return add(Parting::Kind::type, name, tandem::io::python_name(type),
                 tandem::io::python_name(second.scalar_type()));
    if (first.sizes() != second.sizes())
      return add(Parting::Kind::shape, name, c10::str(first.sizes()), c10::str(second.sizes()));
    const at::Tensor a = narrowed(first, first, second), b = narrowed(second, first, second);
    compare_tensor_bytes(partings_, name, element_bytes(a), element_bytes(b), type, a.sizes());
  }

  std::set<std::pair<const void*, const void*>> compared_;
};

class JsonComparison : public Comparison {
 public:
  using Comparison::Comparison;

  void compare(const std::string& name, const Json& first, const Json& second) {
    using Type = Json::value_t;
    if (first.is_number_integer() && second.is_number_integer()) return integers(name, first, second);
    if (first.type() != second.type()) return add(Parting::Kind::type, name, shown(first), shown(second));
    switch (first.type()) {
      case Type::object: return objects(name, first, second);
      case Type::array: return arrays(name, first, second);
      case Type::string: return texts(name, first.get_ref<const std::string&>(), second.get_ref<const std::string&>());
      case Type::boolean: return numbers(name, first.get<bool>(), second.get<bool>(), at::kBool);
      case Type::number_float: return numbers(name, first.get<double>(), second.get<double>(), at::kDouble);
      default: return;  // null
    }
  }

 private:
  static std::string shown(const Json& value) {
    if (value.is_object()) return "an object";
    if (value.is_array()) return "a list";
    if (value.is_string()) return excerpt(value.get_ref<const std::string&>(), 0);
    return value.dump();
  }

  void integers(const std::string& name, const Json& first, const Json& second) {
    if (first == second) return;
    if (first.is_number_unsigned() && second.is_number_unsigned())
      return numbers(name, first.get<std::uint64_t>(), second.get<std::uint64_t>(), at::kUInt64);
    const auto is_large = [](const Json& value) {
      return value.is_number_unsigned() && value > std::numeric_limits<std::int64_t>::max();
    };
    if (is_large(first) || is_large(second)) return add(Parting::Kind::value, name, first.dump(), second.dump());
    numbers(name, first.get<std::int64_t>(), second.get<std::int64_t>(), at::kLong);
  }

  void objects(const std::string& name, const Json& first, const Json& second) {
    for (const auto& [key, value] : first.items()) {
      if (leaves_out(name, key)) continue;
      const auto other = second.find(key);
      if (other == second.end())
        add(Parting::Kind::only_in_first, field(name, key));
      else
        compare(field(name, key), value, *other);
    }
    for (const auto& [key, value] : second.items())
      if (!leaves_out(name, key) && !first.contains(key)) add(Parting::Kind::only_in_second, field(name, key));
  }

  void arrays(const std::string& name, const Json& first, const Json& second) {
    if (first.size() != second.size())
      add(Parting::Kind::size, name, std::to_string(first.size()) + " values",
          std::to_string(second.size()) + " values");
    for (std::size_t i = 0; i < std::min(first.size(), second.size()); ++i) compare(item(name, i), first[i], second[i]);
  }
};

}  // namespace

void compare_tensor_bytes(Partings& partings, const std::string& name, const at::Tensor& first,
                          const at::Tensor& second, std::optional<at::ScalarType> type, at::IntArrayRef shape) {
  const auto difference = compare_elements(first.const_data_ptr(), second.const_data_ptr(), first.nbytes(), type);
  if (!difference) return;
  const bool in_shape = c10::multiply_integers(shape) == difference->elements;
  partings.add({.name = name,
                .index = (in_shape ? place_of(difference->index, shape)
                                   : item({}, static_cast<std::size_t>(difference->index))) +
                         difference->part,
                .first = difference->first,
                .second = difference->second,
                .elements = *difference});
}

void compare_values(Partings& partings, const c10::IValue& first, const c10::IValue& second,
                    const LeavesOut& leaves_out) {
  ValueComparison(partings, leaves_out).compare({}, first, second);
}

void compare_json(Partings& partings, const nlohmann::json& first, const nlohmann::json& second,
                  const LeavesOut& leaves_out) {
  JsonComparison(partings, leaves_out).compare({}, first, second);
}

void compare_contents(Partings& partings, const at::Tensor& first, const at::Tensor& second) {
  if (first.numel() != second.numel())
    return partings.add({.kind = Parting::Kind::size,
                         .first = std::to_string(first.numel()) + " bytes",
                         .second = std::to_string(second.numel()) + " bytes"});
  compare_tensor_bytes(partings, {}, first, second, {}, first.sizes());
}

}  // namespace tandem_tool
