// Objects as bytes: what ranks of several machines send each other.
#pragma once

#include <array>
#include <complex>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

namespace torch::data {
template <class Data, class Target>
struct Example;
}  // namespace torch::data

namespace tandem::comm {

/// A type of the program's that says itself how its objects are sent to ranks of other machines: by two functions in
/// its namespace, `std::string to_bytes(const T&)` and `void from_bytes(std::string_view, T&)`, of which the second
/// gets the very bytes of the first. T is default constructible. `pack` and `unpack` make both of one line each.
template <class T>
concept HasBytes = std::default_initializable<T> && requires(const T& object, T& result, std::string_view bytes) {
  { to_bytes(object) } -> std::convertible_to<std::string>;
  from_bytes(bytes, result);
};

namespace detail {

/// Takes the next `size` bytes off `bytes`. Throws CollectiveError when there are fewer.
std::string_view take_bytes(std::string_view& bytes, std::size_t size);

/// Takes the number of elements that follow, each of at least `least` bytes, off `bytes`. Throws CollectiveError.
std::size_t take_count(std::string_view& bytes, std::size_t least);

/// Appends a number of elements.
void add_count(std::string& bytes, std::size_t count);

/// Throws CollectiveError when bytes are left that nobody has taken.
void check_taken(std::string_view bytes);

/// A tensor, which may be undefined, sparse or on a GPU, or whatever LibTorch pickles. Tensors come back on the CPU;
/// one of plain numbers lies in memory as it did, alone.
void add_value(std::string& bytes, const c10::IValue& value);
c10::IValue take_value(std::string_view& bytes);

/// How objects of a type become bytes and come back; the types without a specialization do not.
template <class T>
struct Bytes {
  static constexpr bool possible = false;
};

template <class T>
requires(std::is_arithmetic_v<T> || std::is_enum_v<T>) struct Bytes<T> {
  static constexpr bool possible = true;
  static void add(std::string& bytes, const T& value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void take(std::string_view& bytes, T& value) {
    std::memcpy(&value, take_bytes(bytes, sizeof value).data(), sizeof value);
  }
};

template <class T>
requires HasBytes<T>
struct Bytes<T> {
  static constexpr bool possible = true;
  static void add(std::string& bytes, const T& value) {
    const std::string own = to_bytes(value);
    add_count(bytes, own.size());
    bytes += own;
  }
  static void take(std::string_view& bytes, T& value) { from_bytes(take_bytes(bytes, take_count(bytes, 1)), value); }
};

template <>
struct Bytes<std::string> {
  static constexpr bool possible = true;
  static void add(std::string& bytes, const std::string& value) {
    add_count(bytes, value.size());
    bytes += value;
  }
  static void take(std::string_view& bytes, std::string& value) { value = take_bytes(bytes, take_count(bytes, 1)); }
};

template <>
struct Bytes<at::Tensor> {
  static constexpr bool possible = true;
  static void add(std::string& bytes, const at::Tensor& value) {
    add_value(bytes, value.defined() ? value.detach() : value);
  }
  static void take(std::string_view& bytes, at::Tensor& value) { value = take_value(bytes).toTensor(); }
};

template <>
struct Bytes<c10::IValue> {
  static constexpr bool possible = true;
  static void add(std::string& bytes, const c10::IValue& value) { add_value(bytes, value); }
  static void take(std::string_view& bytes, c10::IValue& value) { value = take_value(bytes); }
};

template <class T>
struct Bytes<std::complex<T>> {
  static constexpr bool possible = true;
  static void add(std::string& bytes, const std::complex<T>& value) {
    Bytes<T>::add(bytes, value.real());
    Bytes<T>::add(bytes, value.imag());
  }
  static void take(std::string_view& bytes, std::complex<T>& value) {
    T real{}, imaginary{};
    Bytes<T>::take(bytes, real);
    Bytes<T>::take(bytes, imaginary);
    value = {real, imaginary};
  }
};

template <class T>
struct Bytes<std::optional<T>> {
  static constexpr bool possible = Bytes<T>::possible;
  static void add(std::string& bytes, const std::optional<T>& value) {
    Bytes<bool>::add(bytes, value.has_value());
    if (value) Bytes<T>::add(bytes, *value);
  }
  static void take(std::string_view& bytes, std::optional<T>& value) {
    bool has = false;
    Bytes<bool>::take(bytes, has);
    value.reset();
    if (has) Bytes<T>::take(bytes, value.emplace());
  }
};

template <class A, class B>
struct Bytes<std::pair<A, B>> {
  using First = std::remove_const_t<A>;
  static constexpr bool possible = Bytes<First>::possible && Bytes<B>::possible;
  static void add(std::string& bytes, const std::pair<A, B>& value) {
    Bytes<First>::add(bytes, value.first);
    Bytes<B>::add(bytes, value.second);
  }
  static void take(std::string_view& bytes, std::pair<A, B>& value) {
    Bytes<First>::take(bytes, value.first);
    Bytes<B>::take(bytes, value.second);
  }
};

template <class... Ts>
struct Bytes<std::tuple<Ts...>> {
  static constexpr bool possible = (Bytes<std::remove_cvref_t<Ts>>::possible && ...);
  static void add(std::string& bytes, const std::tuple<Ts...>& value) {
    std::apply([&](const auto&... parts) { (Bytes<std::remove_cvref_t<Ts>>::add(bytes, parts), ...); }, value);
  }
  static void take(std::string_view& bytes, std::tuple<Ts...>& value) {
    std::apply([&](auto&... parts) { (Bytes<std::remove_cvref_t<Ts>>::take(bytes, parts), ...); }, value);
  }
};

template <class... Ts>
struct Bytes<std::variant<Ts...>> {
  static constexpr bool possible = (Bytes<Ts>::possible && ...);
  static void add(std::string& bytes, const std::variant<Ts...>& value) {
    add_count(bytes, value.index());
    std::visit([&]<class T>(const T& one) { Bytes<T>::add(bytes, one); }, value);
  }
  static void take(std::string_view& bytes, std::variant<Ts...>& value) {
    const std::size_t index = take_count(bytes, 1);
    if (index >= sizeof...(Ts)) take_bytes(bytes, bytes.size() + 1);  // throws
    std::size_t at = 0;
    const auto take_if = [&]<class T>(T one) {
      if (at++ != index) return;
      Bytes<T>::take(bytes, one);
      value = std::move(one);
    };
    (take_if(Ts{}), ...);
  }
};

template <class Data, class Target>
struct Bytes<torch::data::Example<Data, Target>> {
  static constexpr bool possible = Bytes<Data>::possible && Bytes<Target>::possible;
  static void add(std::string& bytes, const torch::data::Example<Data, Target>& value) {
    Bytes<Data>::add(bytes, value.data);
    Bytes<Target>::add(bytes, value.target);
  }
  static void take(std::string_view& bytes, torch::data::Example<Data, Target>& value) {
    Bytes<Data>::take(bytes, value.data);
    Bytes<Target>::take(bytes, value.target);
  }
};

template <class Data>
struct Bytes<torch::data::Example<Data, void>> {
  static constexpr bool possible = Bytes<Data>::possible;
  static void add(std::string& bytes, const torch::data::Example<Data, void>& value) {
    Bytes<Data>::add(bytes, value.data);
  }
  static void take(std::string_view& bytes, torch::data::Example<Data, void>& value) {
    Bytes<Data>::take(bytes, value.data);
  }
};

template <class T, std::size_t N>
struct Bytes<std::array<T, N>> {
  static constexpr bool possible = Bytes<T>::possible;
  static void add(std::string& bytes, const std::array<T, N>& value) {
    for (const T& one : value) Bytes<T>::add(bytes, one);
  }
  static void take(std::string_view& bytes, std::array<T, N>& value) {
    for (T& one : value) Bytes<T>::take(bytes, one);
  }
};

/// Containers whose elements are inserted one after another.
template <class Container, class Element>
struct BytesOfElements {
  static constexpr bool possible = Bytes<Element>::possible && std::default_initializable<Element>;
  static void add(std::string& bytes, const Container& container) {
    add_count(bytes, container.size());
    for (const auto& element : container) Bytes<Element>::add(bytes, element);
  }
  static void take(std::string_view& bytes, Container& container) {
    container.clear();
    for (std::size_t left = take_count(bytes, 1); left > 0; --left) {
      Element element{};
      Bytes<Element>::take(bytes, element);
      container.insert(container.end(), std::move(element));
    }
  }
};

template <class T>
struct Bytes<std::vector<T>> : BytesOfElements<std::vector<T>, T> {};
template <class K, class V>
struct Bytes<std::map<K, V>> : BytesOfElements<std::map<K, V>, std::pair<K, V>> {};
template <class K, class V>
struct Bytes<std::unordered_map<K, V>> : BytesOfElements<std::unordered_map<K, V>, std::pair<K, V>> {};
template <class K>
struct Bytes<std::set<K>> : BytesOfElements<std::set<K>, K> {};
template <class K>
struct Bytes<std::unordered_set<K>> : BytesOfElements<std::unordered_set<K>, K> {};

}  // namespace detail

/// Whether objects of a type can be sent to ranks of other machines: numbers, enums, strings, tensors (which come back
/// on the CPU), IValues, what HasBytes, and the standard containers, pairs, tuples, optionals and Examples of them.
/// Pointers are not, nor structs that do not say how.
template <class T>
inline constexpr bool has_bytes = detail::Bytes<T>::possible;

/// The parts of an object as bytes: `std::string to_bytes(const Mine& m) { return comm::pack(m.a, m.b); }`.
template <class... Ts>
std::string pack(const Ts&... parts) {
  std::string bytes;
  (detail::Bytes<Ts>::add(bytes, parts), ...);
  return bytes;
}

/// Takes parts off the beginning of `bytes`. Throws CollectiveError when it does not begin with such parts.
template <class... Ts>
void unpack_some(std::string_view& bytes, Ts&... parts) {
  (detail::Bytes<Ts>::take(bytes, parts), ...);
}

/// Their way back: `void from_bytes(std::string_view bytes, Mine& m) { comm::unpack(bytes, m.a, m.b); }`. Throws
/// CollectiveError when the bytes are not those of such parts.
template <class... Ts>
void unpack(std::string_view bytes, Ts&... parts) {
  unpack_some(bytes, parts...);
  detail::check_taken(bytes);
}

}  // namespace tandem::comm
