// What gather gives for a value: each number becomes a row of all ranks'.
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <optional>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tandem/runtime/detail/value_parts.h"

namespace tandem::detail {

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

}  // namespace tandem::detail
