// PyTorch's dicts and lists as LibTorch has them.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/ivalue.h>

#include "tandem/core/error.h"

namespace tandem::optim {

using c10::IValue;
using Dict = c10::impl::GenericDict;
using List = c10::impl::GenericList;

inline Dict new_dict() { return Dict(c10::AnyType::get(), c10::AnyType::get()); }
inline List new_list() { return List(c10::AnyType::get()); }

[[noreturn]] inline void fail(const std::string& problem) { throw CheckpointError(problem); }

// Reading. `where` says what the dict is of.

inline Dict dict_of(const IValue& value, const std::string& where) {
  if (!value.isGenericDict()) fail(where + " is no dict");
  return value.toGenericDict();
}

inline IValue field(const Dict& dict, const std::string& name, const std::string& where) {
  const auto found = dict.find(name);
  if (found == dict.end()) fail(where + " has no '" + name + "'");
  return found->value();
}

inline bool has(const Dict& dict, const std::string& name) { return dict.contains(name); }

inline bool is_number(const IValue& value) {
  return value.isInt() || value.isDouble() || (value.isTensor() && value.toTensor().numel() == 1);
}

inline double number_of(const IValue& value, const std::string& what) {
  if (!is_number(value)) fail(what + " is no number");
  if (value.isTensor()) return value.toTensor().item<double>();
  return value.isInt() ? static_cast<double>(value.toInt()) : value.toDouble();
}

inline std::int64_t count_of(const IValue& value, const std::string& what) {
  const double number = number_of(value, what);
  if (!(number >= 0 && number < 1e15)) fail(what + " is no count");
  return static_cast<std::int64_t>(number);
}

}  // namespace tandem::optim
