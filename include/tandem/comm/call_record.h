#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <string>
#include <typeinfo>

#include <ATen/core/Tensor.h>

namespace tandem::comm {

/// How a reduction combines the ranks' values. Always evaluated in rank order, so results do not depend on timing.
enum class ReduceOp : std::uint8_t {
  sum,
  mean,  ///< sum / world size; floating-point and complex types only
  max,
  min
};

/// What a rank asks of all ranks. The names are those that error messages show.
enum class Operation : std::uint8_t {
  barrier,
  all_reduce,
  broadcast,
  all_gather,
  reduce_scatter,
  gather_objects,
  broadcast_object,
  check_trigger,
  prepare,
  main_first,
  join_uneven_inputs,
  find_executable_batch_size
};

/// Description of one collective call of one rank, compared between ranks and shown in reports.
///
/// Trivially copyable and small: it is written at every call.
struct CallRecord {
  Operation operation = Operation::barrier;
  ReduceOp reduce = ReduceOp::sum;
  c10::ScalarType type = c10::ScalarType::Undefined;  ///< of the first tensor
  std::int8_t dims = -1;                              ///< of the first tensor; -1: no tensor
  std::int32_t root = -1;                             ///< -1: an operation without root
  std::int32_t tensors = 0;                           ///< number of tensors in the call
  std::array<std::int32_t, 4> sizes{};                ///< of the first tensor, the first four
  std::int64_t elements = 0;                          ///< of all tensors; 0 where ranks may differ in length
  std::uint64_t signature = 0;                        ///< hash of all types and sizes that must agree

  /// True when both can be the same call of two ranks. Sizes count through the signature: gathers differ in dim 0.
  bool operator==(const CallRecord& other) const {
    return operation == other.operation && reduce == other.reduce && type == other.type && root == other.root &&
           tensors == other.tensors && elements == other.elements && signature == other.signature;
  }
};

/// Which sizes have to be equal on all ranks.
enum class SizeCheck : std::uint8_t {
  all,               ///< every dimension
  all_but_first_dim  ///< gathers: ranks may differ in dim 0 (0-dim counts as [1])
};

/// Describes a call on `tensors`.
CallRecord describe_call(Operation operation, at::TensorList tensors, SizeCheck check = SizeCheck::all);

/// Describes a call that exchanges C++ objects of type `type`.
CallRecord describe_object_call(Operation operation, const std::type_info& type);

/// `record` as a person reads it, for example `all_reduce(sum) of float32[512, 784] and 5 more tensors, 669706
/// elements`.
std::string to_string(const CallRecord& record);

/// Lower-case name of `operation`.
const char* to_string(Operation operation);

/// Lower-case name of `op`.
const char* to_string(ReduceOp op);

}  // namespace tandem::comm
