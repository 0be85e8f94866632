#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <typeinfo>

#include "tandem/comm/reduction.h"

namespace tandem::comm {

/// What a rank asks of all ranks. The names are those that error messages show.
enum class Operation : std::uint8_t {
  barrier,
  all_reduce,
  reduce,
  broadcast,
  all_gather,
  reduce_scatter,
  all_to_all,
  gather_objects,
  broadcast_object,
  check_trigger,
  prepare,
  reduce_gradients,
  share_weights,
  optimizer_step,
  clip_gradients,
  main_first,
  join_uneven_inputs,
  find_executable_batch_size,
  connect,
  compile_step,
  pad_across_ranks,
  local_sgd
};

/// Description of one collective call of one rank, compared between ranks and shown in reports.
///
/// Trivially copyable and small: it is written at every call.
struct CallRecord {
  /// What is asked for.
  Operation operation = Operation::barrier;
  /// How, where it is a reduction.
  ReduceOp reduce = ReduceOp::sum;
  std::int8_t dims = -1;                ///< of the first tensor; -1: no tensor
  bool agrees = false;                  ///< the ranks compare the rest themselves when they have met: see agree()
  std::int32_t root = -1;               ///< -1: an operation without root
  std::int32_t tensors = 0;             ///< number of tensors in the call
  std::array<std::int32_t, 4> sizes{};  ///< of the first tensor, the first four
  const char* type = "";                ///< name of the first tensor's type, or of an object's, which stays
  std::int64_t elements = 0;            ///< of all tensors; 0 where ranks may differ in length
  std::uint64_t signature = 0;          ///< hash of all types and sizes that must agree

  /// True when both can be the same call of two ranks. Sizes count through the signature: gathers differ in dim 0.
  bool operator==(const CallRecord& other) const {
    if (operation != other.operation || agrees != other.agrees) return false;
    return agrees || (reduce == other.reduce && root == other.root && tensors == other.tensors &&
                      elements == other.elements && signature == other.signature);
  }
};

/// Describes a call that exchanges C++ objects of type `type`.
CallRecord describe_object_call(Operation operation, const std::type_info& type);

/// `record` as a person reads it, for example `all_reduce(sum) of float32[512, 784] and 5 more tensors, 669706
/// elements`.
std::string to_string(const CallRecord& record);

/// Lower-case name of `operation`.
const char* to_string(Operation operation);

}  // namespace tandem::comm
