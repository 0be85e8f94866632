#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <torch/data/example.h>

#include "tandem/core/error.h"

/// \file
/// A batch is a tensor or any nesting of tensors: std::vector, array, pair, tuple, optional, map, unordered_map,
/// torch::data::Example, and structs that say what their parts are. Everything that Tandem does with a batch (move,
/// slice, join, gather, pad) is written once on top of `for_each_tensor`.
///
/// A struct joins in with one function beside it, found by argument-dependent lookup:
///
///     struct Sample { torch::Tensor image, boxes; std::string name; };
///     inline auto batch_fields(Sample& s) { return std::tie(s.image, s.boxes); }

namespace torch::nn {
struct ASMoutput;

/// The parts of what LibTorch's AdaptiveLogSoftmaxWithLoss gives.
template <std::same_as<ASMoutput> Output>
auto batch_fields(Output& output) {
  return std::tie(output.output, output.loss);
}
}  // namespace torch::nn

namespace tandem::data {

/// A struct that says what its parts are.
template <class T>
concept HasBatchFields = requires(T& value) {
  batch_fields(value);
};

namespace detail {

template <class T, template <class...> class Template>
inline constexpr bool is_instance = false;
template <template <class...> class Template, class... Args>
inline constexpr bool is_instance<Template<Args...>, Template> = true;

template <class T>
inline constexpr bool is_array = false;
template <class T, std::size_t N>
inline constexpr bool is_array<std::array<T, N>> = true;

// What a type is made of, as far as that is known when it is compiled.
struct PartKinds {
  bool tensors = false, numbers = false;
  bool plain = false;    // enums and texts: neither, and no tensor in them
  bool unknown = false;  // types that nobody can look into

  friend consteval PartKinds operator|(const PartKinds& a, const PartKinds& b) {
    return {a.tensors || b.tensors, a.numbers || b.numbers, a.plain || b.plain, a.unknown || b.unknown};
  }
};

template <class T, class... Within>
consteval PartKinds part_kinds();

template <class... Within, class... Parts>
consteval PartKinds kinds_of_all(std::type_identity<std::tuple<Parts...>>) {
  return (PartKinds{} | ... | part_kinds<Parts, Within...>());
}

// `Within`: the structs that it is a part of; one may have a list of its own kind.
template <class T, class... Within>
consteval PartKinds part_kinds() {
  using Value = std::remove_cvref_t<T>;
  if constexpr (std::is_same_v<Value, at::Tensor>) {
    return {.tensors = true};
  } else if constexpr ((std::is_same_v<Value, Within> || ...)) {
    return {};
  } else if constexpr (HasBatchFields<Value>) {
    using Fields = std::remove_cvref_t<decltype(batch_fields(std::declval<Value&>()))>;
    return kinds_of_all<Value, Within...>(std::type_identity<Fields>());
  } else if constexpr (std::is_arithmetic_v<Value>) {
    return {.numbers = true};
  } else if constexpr (std::is_enum_v<Value> || std::is_same_v<Value, std::string>) {
    return {.plain = true};
  } else if constexpr (is_instance<Value, torch::data::Example>) {
    if constexpr (requires(Value & value) { value.target; })
      return part_kinds<decltype(Value::data), Within...>() | part_kinds<decltype(Value::target), Within...>();
    else
      return part_kinds<decltype(Value::data), Within...>();
  } else if constexpr (is_instance<Value, std::pair>) {
    return part_kinds<typename Value::first_type, Within...>() | part_kinds<typename Value::second_type, Within...>();
  } else if constexpr (is_instance<Value, std::tuple>) {
    return kinds_of_all<Within...>(std::type_identity<Value>());
  } else if constexpr (is_instance<Value, std::vector> || is_array<Value> || is_instance<Value, std::optional>) {
    return part_kinds<typename Value::value_type, Within...>();
  } else if constexpr (is_instance<Value, std::map> || is_instance<Value, std::unordered_map>) {
    return part_kinds<typename Value::mapped_type, Within...>();
  } else {
    return {.unknown = true};
  }
}

}  // namespace detail

/// Calls `visit(at::Tensor&)` for every defined tensor in `value`, in a fixed order; maps in key order (an
/// unordered_map in that of its sorted keys), so that equal structures give the same order on every rank. Other values
/// (numbers, strings) are passed over.
template <class T, class Visitor>
void for_each_tensor(T& value, Visitor&& visit) {
  using Value = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<Value, at::Tensor>) {
    if (value.defined()) visit(value);
  } else if constexpr (HasBatchFields<Value>) {
    std::apply([&](auto&... parts) { (for_each_tensor(parts, visit), ...); }, batch_fields(value));
  } else if constexpr (detail::is_instance<Value, torch::data::Example>) {
    for_each_tensor(value.data, visit);
    if constexpr (requires { value.target; }) for_each_tensor(value.target, visit);
  } else if constexpr (detail::is_instance<Value, std::pair> || detail::is_instance<Value, std::tuple>) {
    std::apply([&](auto&... parts) { (for_each_tensor(parts, visit), ...); }, value);
  } else if constexpr (detail::is_instance<Value, std::vector> || detail::is_array<Value>) {
    if constexpr (!std::is_same_v<Value, std::vector<bool>>)
      for (auto& part : value) for_each_tensor(part, visit);
  } else if constexpr (detail::is_instance<Value, std::optional>) {
    if (value) for_each_tensor(*value, visit);
  } else if constexpr (detail::is_instance<Value, std::map>) {
    for (auto& [key, part] : value) for_each_tensor(part, visit);
  } else if constexpr (detail::is_instance<Value, std::unordered_map>) {
    std::map<typename Value::key_type, typename Value::mapped_type*> sorted;
    for (auto& [key, part] : value) sorted.emplace(key, &part);
    for (auto& [key, part] : sorted) for_each_tensor(*part, visit);
  }
}

/// The tensors of `value` in visiting order; they point into it.
template <class T>
std::vector<at::Tensor*> tensors_of(T& value) {
  std::vector<at::Tensor*> tensors;
  for_each_tensor(value, [&](at::Tensor& tensor) { tensors.push_back(&tensor); });
  return tensors;
}

/// A copy of `value` in which each tensor is `function(tensor)`.
template <class T, class Function>
T map_tensors(T value, Function&& function) {
  for_each_tensor(value, [&](at::Tensor& tensor) { tensor = function(tensor); });
  return value;
}

/// `value` on `device`; tensors that are there already are not copied.
template <class T>
T to_device(T value, c10::Device device, bool non_blocking = false) {
  return data::map_tensors(std::move(value), [&](const at::Tensor& t) { return t.to(device, non_blocking); });
}

/// Number of samples in a batch: dim 0 of its first tensor with dimensions. Throws DataError when there is none.
template <class T>
std::int64_t batch_size_of(const T& value) {
  T& mutable_value = const_cast<T&>(value);  // visiting does not change it
  for (at::Tensor* tensor : tensors_of(mutable_value))
    if (tensor->dim() > 0) return tensor->size(0);
  throw DataError("a batch has no tensor with a batch dimension (dim 0)");
}

/// Rows [begin, end) of each tensor, as views; 0-dim tensors are kept.
template <class T>
T slice(T value, std::int64_t begin, std::int64_t end) {
  return data::map_tensors(std::move(value),
                           [&](const at::Tensor& t) { return t.dim() == 0 ? t : t.slice(0, begin, end); });
}

/// Joins values of equal structure tensor by tensor with `join(std::vector<at::Tensor>) -> at::Tensor`; parts that are
/// no tensors come from the first. Throws DataError when the structures differ, or when `values` is empty.
template <class T, class Join>
T join_tensors(std::vector<T> values, Join&& join) {
  if (values.empty()) throw DataError("there is nothing to join: no values");
  std::vector<std::vector<at::Tensor*>> parts;
  for (T& value : values) parts.push_back(tensors_of(value));
  for (const auto& part : parts)
    if (part.size() != parts.front().size())
      throw DataError("batches of different structure cannot be joined: one has " +
                      std::to_string(parts.front().size()) + " tensors, another " + std::to_string(part.size()));
  for (std::size_t i = 0; i < parts.front().size(); ++i) {
    std::vector<at::Tensor> column;
    for (const auto& part : parts) column.push_back(*part[i]);
    *parts.front()[i] = join(std::move(column));
  }
  return std::move(values.front());
}

/// Tensors of samples stacked along a new dim 0. Throws DataError when their shapes differ.
inline at::Tensor stack_samples(const std::vector<at::Tensor>& column) {
  for (std::size_t i = 1; i < column.size(); ++i)
    if (column[i].sizes() != column[0].sizes())
      throw DataError("samples of different shapes cannot be stacked to a batch: sample 0 has " +
                      c10::str(column[0].sizes()) + ", sample " + std::to_string(i) + " has " +
                      c10::str(column[i].sizes()) + "; give the dataset a collation that pads them");
  return at::stack(column);
}

/// Samples to a batch: each tensor stacked along a new dim 0. Throws DataError when the samples' shapes differ.
template <class Sample>
Sample stack(std::vector<Sample> samples) {
  return data::join_tensors(std::move(samples), stack_samples);
}

}  // namespace tandem::data
