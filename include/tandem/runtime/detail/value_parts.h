// Values that ranks exchange, taken to pieces.
#pragma once

#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/core/error.h"
#include "tandem/data/batch.h"

namespace tandem::detail {

/// A number as it travels: integers exactly, floating-point as double.
using Number = std::variant<std::int64_t, std::uint64_t, double>;

template <std::integral N>
[[noreturn]] void throw_unfit(const std::string& value) {
  throw CollectiveError("the result " + value + " does not fit into an integer of " + std::to_string(sizeof(N)) +
                        (std::is_same_v<N, bool> ? " byte that is a bool" : " bytes") +
                        "; give the ranks a wider type, or a double");
}

template <class N>
Number to_number(N value) {
  if constexpr (std::is_floating_point_v<N>)
    return static_cast<double>(value);
  else if constexpr (std::is_unsigned_v<N> && sizeof(N) == sizeof(std::uint64_t))
    return static_cast<std::uint64_t>(value);
  else
    return static_cast<std::int64_t>(value);
}

template <class N>
constexpr bool is_negative(N value) {
  if constexpr (std::is_signed_v<N>)
    return value < 0;
  else
    return false;
}

// Throws CollectiveError where it is no integer of type N.
template <std::integral N, class Value>
N to_integer(Value value) {
  if constexpr (std::is_floating_point_v<Value>) {
    if (value != std::trunc(value) || std::abs(value) > 0x1p62) throw_unfit<N>(std::to_string(value));
    return to_integer<N>(static_cast<std::int64_t>(value));
  } else {
    const N result = static_cast<N>(value);
    if (static_cast<Value>(result) != value || is_negative(result) != is_negative(value))
      throw_unfit<N>(std::to_string(value));
    return result;
  }
}

// Throws CollectiveError where it is no number of type N.
template <class N>
N from_number(const Number& number) {
  return std::visit(
      [](auto value) {
        if constexpr (std::is_floating_point_v<N>)
          return static_cast<N>(value);
        else
          return to_integer<N>(value);
      },
      number);
}

/// The numbers at one place of a value: one, or a row of them.
struct Numbers {
  bool row = false;            ///< a vector or array of numbers; otherwise one number
  bool integers = false;       ///< or bools; otherwise floating-point
  const char* type = "";       ///< what they are, as texts show it
  std::vector<Number> values;  ///< of this rank, then the result
};

/// A value taken to pieces: what .cpp files work on, whatever the value's type.
struct ValueParts {
  std::vector<at::Tensor> tensors;          ///< the defined ones
  std::vector<Numbers> numbers;             ///< at each of their places
  std::uint64_t structure = 0;              ///< hash of how they are nested, and of their types
  bool undefined = false;                   ///< the value is one tensor, and undefined
  std::function<std::string()> describe{};  ///< the value as a person reads it
};

template <class N>
constexpr const char* name_of_number() {
  if constexpr (std::is_same_v<N, bool>) return "bool";
  constexpr std::array<const char*, 4> kSigned{"int8", "int16", "int32", "int64"};
  constexpr std::array<const char*, 4> kUnsigned{"uint8", "uint16", "uint32", "uint64"};
  constexpr std::size_t place = sizeof(N) == 1 ? 0 : sizeof(N) == 2 ? 1 : sizeof(N) == 4 ? 2 : 3;
  if constexpr (std::is_floating_point_v<N>) return sizeof(N) == sizeof(float) ? "float" : "double";
  return std::is_signed_v<N> ? kSigned[place] : kUnsigned[place];
}

template <class T>
inline constexpr bool is_row = false;
template <class N>
inline constexpr bool is_row<std::vector<N>> = std::is_arithmetic_v<N>;
template <class N, std::size_t size>
inline constexpr bool is_row<std::array<N, size>> = std::is_arithmetic_v<N>;

/// What walks along the parts of a value, in a fixed order.
class PartVisitor {
 public:
  virtual ~PartVisitor() = default;
  /// A nesting of so many parts begins: '{' a map, '[' a list, '(' any other.
  virtual void begin(char kind, std::size_t parts) = 0;
  virtual void key(const std::string& key) = 0;  ///< of the part of a map that follows
  virtual void end() = 0;                        ///< of the nesting
  virtual void tensor(at::Tensor& tensor) = 0;   ///< also an undefined one
  virtual bool numbers(Numbers& numbers) = 0;    ///< true: they have changed
};

template <class Key>
std::string text_of_key(const Key& key) {
  if constexpr (std::is_convertible_v<Key, std::string>)
    return key;
  else if constexpr (std::is_arithmetic_v<Key>)
    return std::to_string(key);
  else if constexpr (requires { std::hash<Key>()(key); })
    return "key " + std::to_string(std::hash<Key>()(key));
  else
    return "?";
}

template <class T>
Numbers numbers_of(const T& value) {
  Numbers numbers;
  if constexpr (is_row<T>) {
    using N = typename T::value_type;
    numbers.row = true;
    numbers.integers = std::is_integral_v<N>;
    numbers.type = name_of_number<N>();
    numbers.values.reserve(value.size());
    for (const N one : value) numbers.values.push_back(to_number(one));
  } else {
    numbers.integers = std::is_integral_v<T>;
    numbers.type = name_of_number<T>();
    numbers.values.push_back(to_number(value));
  }
  return numbers;
}

template <class N>
std::vector<N> to_vector(const std::vector<Number>& values) {
  std::vector<N> result;
  result.reserve(values.size());
  for (const Number& value : values) result.push_back(from_number<N>(value));
  return result;
}

template <class T>
void store(T& value, const Numbers& numbers) {
  if constexpr (data::detail::is_instance<T, std::vector>) {
    value = to_vector<typename T::value_type>(numbers.values);
  } else if constexpr (is_row<T>) {
    for (std::size_t i = 0; i < value.size(); ++i) value[i] = from_number<typename T::value_type>(numbers.values.at(i));
  } else {
    value = from_number<T>(numbers.values.at(0));
  }
}

// Goes along the parts of `value`, an unordered_map's in the order of its sorted keys.
template <class T>
void walk(T& value, PartVisitor& visitor) {
  const auto several = [&](auto&... parts) {
    visitor.begin('(', sizeof...(parts));
    (detail::walk(parts, visitor), ...);
    visitor.end();
  };
  const auto each = [&](auto& parts) {
    visitor.begin('[', parts.size());
    for (auto& part : parts) detail::walk(part, visitor);
    visitor.end();
  };
  if constexpr (std::is_same_v<T, at::Tensor>) {
    visitor.tensor(value);
  } else if constexpr (data::HasBatchFields<T>) {
    std::apply(several, batch_fields(value));
  } else if constexpr (std::is_arithmetic_v<T> || is_row<T>) {
    Numbers numbers = numbers_of(value);
    if (visitor.numbers(numbers)) detail::store(value, numbers);
  } else if constexpr (data::detail::is_instance<T, torch::data::Example>) {
    if constexpr (requires { value.target; })
      several(value.data, value.target);
    else
      several(value.data);
  } else if constexpr (data::detail::is_instance<T, std::pair> || data::detail::is_instance<T, std::tuple>) {
    std::apply(several, value);
  } else if constexpr (data::detail::is_instance<T, std::vector> || data::detail::is_array<T>) {
    each(value);
  } else if constexpr (data::detail::is_instance<T, std::optional>) {
    visitor.begin('[', value ? 1 : 0);
    if (value) detail::walk(*value, visitor);
    visitor.end();
  } else if constexpr (data::detail::is_instance<T, std::map>) {
    visitor.begin('{', value.size());
    for (auto& [key, part] : value) {
      visitor.key(text_of_key(key));
      detail::walk(part, visitor);
    }
    visitor.end();
  } else if constexpr (data::detail::is_instance<T, std::unordered_map>) {
    std::map<typename T::key_type, typename T::mapped_type*> sorted;
    for (auto& [key, part] : value) sorted.emplace(key, &part);
    visitor.begin('{', value.size());
    for (auto& [key, part] : sorted) {
      visitor.key(text_of_key(key));
      detail::walk(*part, visitor);
    }
    visitor.end();
  }
}

/// Collects the parts.
class CollectParts final : public PartVisitor {
 public:
  explicit CollectParts(ValueParts& parts) : parts_(parts) {}
  void begin(char kind, std::size_t parts) override;
  void key(const std::string& key) override;
  void end() override;
  void tensor(at::Tensor& tensor) override;
  bool numbers(Numbers& numbers) override;

 private:
  void add(std::uint64_t word);
  ValueParts& parts_;
};

/// Puts results in the places of the parts that were collected.
class PlaceParts final : public PartVisitor {
 public:
  explicit PlaceParts(const ValueParts& parts) : parts_(parts) {}
  void begin(char, std::size_t) override {}
  void key(const std::string&) override {}
  void end() override {}
  void tensor(at::Tensor& tensor) override {
    if (tensor.defined()) tensor = parts_.tensors.at(next_tensor_++);
  }
  bool numbers(Numbers& numbers) override {
    numbers.values = next_numbers();
    return true;
  }
  /// Those of the next place, for who walks by himself.
  const std::vector<Number>& next_numbers() { return parts_.numbers.at(next_numbers_++).values; }

 private:
  const ValueParts& parts_;
  std::size_t next_tensor_ = 0, next_numbers_ = 0;
};

/// Says what the parts are: "(Float[2, 3], [Long[4], double])".
class DescribeParts final : public PartVisitor {
 public:
  void begin(char kind, std::size_t parts) override;
  void key(const std::string& key) override;
  void end() override;
  void tensor(at::Tensor& tensor) override;
  bool numbers(Numbers& numbers) override;
  const std::string& text() const { return text_; }

 private:
  void separate();
  std::string text_, closing_;
};

// `value` is not changed, and stays until the parts have been used.
template <class T>
ValueParts take_to_pieces(T& value) {
  ValueParts parts;
  CollectParts collect(parts);
  detail::walk(value, collect);
  if constexpr (std::is_same_v<T, at::Tensor>) parts.undefined = !value.defined();
  parts.describe = [&value] {
    DescribeParts describe;
    detail::walk(value, describe);
    return describe.text();
  };
  return parts;
}

}  // namespace tandem::detail
