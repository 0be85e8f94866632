// What the operations of a pickle make, before it becomes values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <ATen/core/ivalue.h>
#include <c10/core/ScalarType.h>

#include "io/numpy_pickle.h"
#include "io/unpickle.h"

namespace tandem::io {

[[noreturn]] inline void fail_pickle(const std::string& problem) { throw UnpickleError(problem); }

[[noreturn]] inline void fail_foreign(const std::string& name) {
  if (name.starts_with("__torch__."))
    fail_pickle("is a TorchScript module; save its weights alone, with torch.save(module.state_dict(), …) in Python");
  fail_pickle("needs '" + name + "' of Python's, which Tandem does not run" +
              (name.find(".modules.") == std::string::npos
                   ? ""
                   : "; of a whole module save the weights alone, with torch.save(module.state_dict(), …)"));
}

struct PickleNode;
using PickleNodes = std::vector<PickleNode*>;

struct PickledTuple {
  PickleNodes items;
};
struct PickledList {
  PickleNodes items;
};
struct PickledDict {
  PickleNodes items;  // key, value, key, value …
};
// A name of Python's, `module.name`.
struct PickledGlobal {
  std::string name;
};
// A whole number of more than 64 bits.
struct PickledLong {};

// Bytes that tensors refer to, by the key of their storage.
struct PickledBytes {
  std::optional<at::ScalarType> type;      // of the elements; nothing: the tensors say it
  std::string key;                         //
  std::uint64_t storage_bytes, begin = 0,  // of a part of the storage, in files before PyTorch 1.6
      bytes;                               //
};

struct PickledTensor {
  at::ScalarType type;
  PickledBytes storage;
  std::int64_t offset;  // in elements
  std::vector<std::int64_t> sizes, strides;
  bool conjugate = false, negative = false;  // what the elements stand for
};

struct PickledArray {
  NumpyType type;
  std::vector<std::int64_t> shape;
  bool fortran = false;
  const std::string* bytes = nullptr;  // of another node; null: has not come yet
};

// A value of the pickle. Values may refer to each other in any way, themselves included. Rare and large ones lie apart.
struct PickleNode {
  std::variant<std::monostate, bool, std::int64_t, double, std::string, PickledTuple, PickledList, PickledDict,
               PickledGlobal, PickledLong, std::unique_ptr<PickledBytes>, std::unique_ptr<PickledTensor>,
               std::unique_ptr<NumpyType>, std::unique_ptr<PickledArray>, std::unique_ptr<c10::IValue>>
      value;
};

template <class T>
T& as(PickleNode& node, const char* kind) {
  if (auto* value = std::get_if<T>(&node.value)) return *value;
  if (const auto* global = std::get_if<PickledGlobal>(&node.value)) fail_foreign(global->name);
  fail_pickle(std::string("has a pickle with another value where ") + kind + " should be");
}

// ('storage', kind, key, device, number of elements[, part]). Adds to `storages`, and throws when it is known there
// with another size.
PickledBytes pickled_storage(const PickledTuple& description, std::map<std::string, PickledStorage>& storages);

// What a function of Python's would return: a node that is there already, or the value of a new one. Counts the bytes
// that were copied to `copied`.
std::variant<PickleNode*, PickleNode> call_of_python(const std::string& name, const PickleNodes& arguments,
                                                     std::size_t& copied);

// What an object of Python's does with the state that it is given.
void set_state(PickleNode& object, PickleNode& state);

// The value of a node, whose tensors are in the storages.
c10::IValue value_of(const PickleNode& node, const FindStorage& find_storage);

}  // namespace tandem::io
