#pragma once

#include <array>
#include <cmath>
#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <ostream>
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

/// \file
/// What ranks exchange by gather, reduce, broadcast and pad_across_ranks: tensors, numbers (bool, integers and
/// floating-point types), and the nestings of them that data/batch.h has.
namespace tandem {

namespace detail {

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

// ---- what gather gives for a type: each number becomes a row of all ranks'

template <class T>
struct GatheredType {
  using type = T;
};
template <class N>
requires std::is_arithmetic_v<N>
struct GatheredType<N> {
  using type = std::vector<N>;
};
template <class A, class B>
struct GatheredType<std::pair<A, B>> {
  using type = std::pair<typename GatheredType<A>::type, typename GatheredType<B>::type>;
};
template <class... Parts>
struct GatheredType<std::tuple<Parts...>> {
  using type = std::tuple<typename GatheredType<Parts>::type...>;
};
template <class T>
struct GatheredType<std::vector<T>> {
  using type = std::conditional_t<std::is_arithmetic_v<T>, std::vector<T>, std::vector<typename GatheredType<T>::type>>;
};
template <class T, std::size_t size>
struct GatheredType<std::array<T, size>> {
  using type =
      std::conditional_t<std::is_arithmetic_v<T>, std::vector<T>, std::array<typename GatheredType<T>::type, size>>;
};
template <class T>
struct GatheredType<std::optional<T>> {
  using type = std::optional<typename GatheredType<T>::type>;
};
template <class Key, class T, class Less>
struct GatheredType<std::map<Key, T, Less>> {
  using type = std::map<Key, typename GatheredType<T>::type, Less>;
};
template <class Key, class T, class Hash, class Equal>
struct GatheredType<std::unordered_map<Key, T, Hash, Equal>> {
  using type = std::unordered_map<Key, typename GatheredType<T>::type, Hash, Equal>;
};
template <class Data, class Target>
struct GatheredType<torch::data::Example<Data, Target>> {
  using type = torch::data::Example<typename GatheredType<Data>::type, typename GatheredType<Target>::type>;
};
template <class Data>
struct GatheredType<torch::data::Example<Data, void>> {
  using type = torch::data::Example<typename GatheredType<Data>::type, void>;
};

// Whether a struct has numbers that are no rows: there is no place in it for those of all ranks.
template <class T, class... Within>
consteval bool cannot_hold_gathered();

template <class... Within, class... Parts>
consteval bool any_cannot_hold(std::type_identity<std::tuple<Parts...>>, bool within_struct) {
  const auto cannot = []<class Part>(std::type_identity<Part>, bool inside) {
    using Value = std::remove_cvref_t<Part>;
    if constexpr (!std::is_same_v<typename GatheredType<Value>::type, Value>)
      return inside || cannot_hold_gathered<Value, Within...>();
    else
      return cannot_hold_gathered<Value, Within...>();
  };
  return (cannot(std::type_identity<Parts>(), within_struct) || ...);
}

template <class T, class... Within>
consteval bool cannot_hold_gathered() {
  if constexpr ((std::is_same_v<T, Within> || ...)) {
    return false;
  } else if constexpr (std::is_same_v<T, at::Tensor> || std::is_arithmetic_v<T> || is_row<T>) {
    return false;
  } else if constexpr (data::HasBatchFields<T>) {
    using Fields = std::remove_cvref_t<decltype(batch_fields(std::declval<T&>()))>;
    return any_cannot_hold<T, Within...>(std::type_identity<Fields>(), true);
  } else if constexpr (data::detail::is_instance<T, std::pair>) {
    return any_cannot_hold<Within...>(std::type_identity<std::tuple<typename T::first_type, typename T::second_type>>(),
                                      false);
  } else if constexpr (data::detail::is_instance<T, std::tuple>) {
    return any_cannot_hold<Within...>(std::type_identity<T>(), false);
  } else if constexpr (data::detail::is_instance<T, torch::data::Example>) {
    if constexpr (requires(T & value) { value.target; })
      return any_cannot_hold<Within...>(std::type_identity<std::tuple<typename T::DataType, typename T::TargetType>>(),
                                        false);
    else
      return cannot_hold_gathered<typename T::DataType, Within...>();
  } else if constexpr (data::detail::is_instance<T, std::map> || data::detail::is_instance<T, std::unordered_map>) {
    return cannot_hold_gathered<typename T::mapped_type, Within...>();
  } else if constexpr (requires { typename T::value_type; }) {
    return cannot_hold_gathered<typename T::value_type, Within...>();
  } else {
    return false;
  }
}

// The value that gather gives: `value` with the results in the places of its parts.
template <class T>
typename GatheredType<T>::type gathered(T& value, PlaceParts& place) {
  using Result = typename GatheredType<T>::type;
  if constexpr (std::is_same_v<Result, T>) {
    detail::walk(value, place);
    return value;
  } else if constexpr (std::is_arithmetic_v<T> || is_row<T>) {
    return to_vector<typename Result::value_type>(place.next_numbers());
  } else if constexpr (data::detail::is_instance<T, torch::data::Example>) {
    if constexpr (requires { value.target; })
      return Result{detail::gathered(value.data, place), detail::gathered(value.target, place)};
    else
      return Result{detail::gathered(value.data, place)};
  } else if constexpr (data::detail::is_instance<T, std::pair> || data::detail::is_instance<T, std::tuple> ||
                       data::detail::is_array<T>) {
    // Braces evaluate from left to right.
    return std::apply([&](auto&... parts) { return Result{detail::gathered(parts, place)...}; }, value);
  } else if constexpr (data::detail::is_instance<T, std::optional>) {
    return value ? Result(detail::gathered(*value, place)) : Result();
  } else if constexpr (data::detail::is_instance<T, std::vector>) {
    Result result;
    for (auto& part : value) result.push_back(detail::gathered(part, place));
    return result;
  } else {  // a map
    std::map<typename T::key_type, typename T::mapped_type*> sorted;
    for (auto& [key, part] : value) sorted.emplace(key, &part);
    Result result;
    for (auto& [key, part] : sorted) result.emplace(key, detail::gathered(*part, place));
    return result;
  }
}

// Says what is wrong with a type that the ranks cannot exchange.
template <class T>
consteval void check_exchangeable() {
  constexpr data::detail::PartKinds kinds = data::detail::part_kinds<T>();
  static_assert(!kinds.unknown,
                "gather, reduce, broadcast and pad_across_ranks take tensors, numbers and nestings of them (vector, "
                "array, pair, tuple, optional, map, unordered_map, torch::data::Example). For a struct of your own add "
                "`inline auto batch_fields(YourStruct& s) { return std::tie(s.a, s.b); }` beside it, with its tensors "
                "and numbers (tandem/data/batch.h); any copyable object goes through gather_objects and "
                "broadcast_object");
  static_assert(!kinds.plain,
                "gather, reduce, broadcast and pad_across_ranks take tensors and numbers, and there is a text or an "
                "enum in this value: leave it out of batch_fields, or use gather_objects and broadcast_object");
  static_assert(kinds.unknown || kinds.plain || kinds.tensors || kinds.numbers,
                "there is neither a tensor nor a number in this type; name them in batch_fields "
                "(tandem/data/batch.h), or use gather_objects and broadcast_object");
}

}  // namespace detail

/// A type that gather, reduce, broadcast and pad_across_ranks take: of tensors and numbers only, and with at least one.
template <class T>
concept RankValue = !data::detail::part_kinds<T>().unknown && !data::detail::part_kinds<T>().plain &&
                    (data::detail::part_kinds<T>().tensors || data::detail::part_kinds<T>().numbers);

/// What `gather` gives for a T. A number becomes the std::vector of all ranks' numbers, and so does a std::vector or
/// std::array of numbers (joined, as a tensor of one dim is); tensors and structs keep their types.
template <class T>
using Gathered = typename detail::GatheredType<T>::type;

/// What reduce(integer, op) gives: the integer, exactly, and after ReduceOp::mean a double. Give it a type:
///
///     const double mean = accelerator.reduce(correct, ReduceOp::mean);
///     const std::int64_t most = accelerator.reduce(correct, ReduceOp::max);
class ReducedInteger {
 public:
  /// Holds an integer.
  explicit ReducedInteger(std::int64_t value) : value_(value) {}
  /// Holds a mean.
  explicit ReducedInteger(double mean) : value_(mean) {}

  /// The value as a number of another type. Throws CollectiveError where it is not an integer of that type, as a mean
  /// of 0.5.
  template <class N>
  requires std::is_arithmetic_v<N>
  operator N() const { return detail::from_number<N>(value_); }

  /// True when the values are equal, whatever their types.
  template <class N>
  requires std::is_arithmetic_v<N>
  friend bool operator==(const ReducedInteger& a, N b) { return (a <=> b) == 0; }

  /// Compares the values: integers exactly.
  template <class N>
  requires std::is_arithmetic_v<N>
  friend std::partial_ordering operator<=>(const ReducedInteger& a, N b) {
    if constexpr (std::is_integral_v<N>) {
      using Wide = std::conditional_t<std::is_unsigned_v<N>, std::uint64_t, std::int64_t>;
      const auto wide = static_cast<Wide>(b);
      if (const auto* integer = std::get_if<std::int64_t>(&a.value_)) {
        if (std::cmp_less(*integer, wide)) return std::partial_ordering::less;
        return std::cmp_equal(*integer, wide) ? std::partial_ordering::equivalent : std::partial_ordering::greater;
      }
    }
    return detail::from_number<double>(a.value_) <=> static_cast<double>(b);
  }

  /// Writes the value.
  friend std::ostream& operator<<(std::ostream& to, const ReducedInteger& value) {
    std::visit([&](auto held) { to << held; }, value.value_);
    return to;
  }

 private:
  detail::Number value_;
};

/// What `reduce` gives for a T: std::int64_t for an integer, double for a floating-point number, otherwise a T.
template <class T>
using Reduced =
    std::conditional_t<std::is_integral_v<T>, std::int64_t, std::conditional_t<std::is_floating_point_v<T>, double, T>>;

}  // namespace tandem
