// Compares what files hold, to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <nlohmann/json.hpp>

#include "element_diff.h"

namespace tandem_tool {

/// A place at which two runs part.
struct Parting {
  enum class Kind { value, shape, type, size, only_in_first, only_in_second };
  Kind kind = Kind::value;
  std::optional<std::int64_t> step{};
  std::string checkpoint{};       ///< name in its series; empty: not of one
  std::string file{};             ///< of a checkpoint; empty: the file that was given
  std::string name{};             ///< of the parameter or field; empty: the whole file
  std::string index{};            ///< of the first element that differs, as "[3, 17]"; empty: it is one value
  std::string parameter{};        ///< whose state it is, in an optimizer's
  std::string first{}, second{};  ///< the two, for people; empty where there is only one
  ElementDifference elements{};   ///< of Kind::value, if `elements.elements` is not 0
  bool setting = false;           ///< a flag of the run, which is no part of its state
};

/// The places that were found.
class Partings {
 public:
  /// Adds one at `step` in `checkpoint` and `file`. Very many are counted only.
  void add(Parting parting);

  std::optional<std::int64_t> step;  ///< of those that are added
  std::string checkpoint, file;      ///< likewise
  const std::vector<Parting>& all() const { return all_; }
  std::vector<Parting>& all() { return all_; }
  std::size_t left_out() const { return left_out_; }

 private:
  std::vector<Parting> all_;
  std::size_t left_out_ = 0;
};

/// Whether a field is not compared: its name, and that of what it is in.
using LeavesOut = std::function<bool(const std::string& within, const std::string& name)>;

/// The elements of a dense tensor as bytes, one after the other, and as they count: not conjugated or negated any more.
at::Tensor element_bytes(const at::Tensor& tensor);

/// Elements in bytes of two tensors `name` of one type (nothing: none of LibTorch's) and shape.
void compare_tensor_bytes(Partings& partings, const std::string& name, const at::Tensor& first,
                          const at::Tensor& second, std::optional<at::ScalarType> type, at::IntArrayRef shape);

/// Values of files of torch.save, however they are nested.
void compare_values(Partings& partings, const c10::IValue& first, const c10::IValue& second,
                    const LeavesOut& leaves_out);

void compare_json(Partings& partings, const nlohmann::json& first, const nlohmann::json& second,
                  const LeavesOut& leaves_out);

/// Contents of files of any other kind.
void compare_contents(Partings& partings, const at::Tensor& first, const at::Tensor& second);

}  // namespace tandem_tool
