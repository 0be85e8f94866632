#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <typeinfo>

#include "tandem/comm/reduction.h"

namespace tandem::comm {

/// What a CallRecord has in place of a ReduceOp where nothing is reduced.
inline constexpr ReduceOp kNoReduction{255};

/// Description of one collective call of one rank, compared between ranks and shown in reports.
///
/// Trivially copyable and small, since it is written at every call: together with the call's number, a cache line.
struct CallRecord {
  /// What the rank asks of all ranks, as error messages name it: a string literal, or another text that stays.
  const char* operation = "";
  ReduceOp reduce = kNoReduction;       ///< how tensors are combined; kNoReduction: they are not
  bool root_receives : 1 = false;       ///< whether the root gets the result; otherwise it is the source
  bool shows_type : 1 = false;          ///< whether errors name an object's type: one of the program's
  bool agrees : 1 = false;              ///< the ranks compare the rest themselves when they have met: see agree()
  std::int8_t dims = -1;                ///< of the first tensor; -1: no tensor
  std::int64_t elements : 40 = 0;       ///< of all tensors; 0 where ranks may differ in length
  std::int32_t root = -1;               ///< -1: a call without root
  std::int32_t tensors = 0;             ///< number of tensors in the call
  std::array<std::int32_t, 4> sizes{};  ///< of the first tensor, the first four
  const char* type = "";                ///< name of the first tensor's type, or of an object's, which stays
  std::uint64_t signature = 0;          ///< hash of all types and sizes that must agree

  /// True when both can be the same call of two ranks. Sizes count through the signature: gathers differ in dim 0.
  bool operator==(const CallRecord& other) const {
    // Ranks mostly make a call in the same place, with the same literal.
    const bool same_operation = operation == other.operation || std::strcmp(operation, other.operation) == 0;
    if (!same_operation || agrees != other.agrees) return false;
    return agrees || (reduce == other.reduce && root == other.root && tensors == other.tensors &&
                      elements == other.elements && signature == other.signature);
  }
};

/// Describes a call that exchanges C++ objects of type `type`.
CallRecord describe_object_call(const char* operation, const std::type_info& type);

/// `record` as a person reads it, for example `all_reduce(sum) of float32[512, 784] and 5 more tensors, 669706
/// elements`.
std::string to_string(const CallRecord& record);

/// Keeps the texts of records that come from other processes, where no literal has them.
class RecordTexts {
 public:
  /// The same text, which stays as long as this. One thread at a time.
  const char* keep(const std::string& text) { return texts_.insert(text).first->c_str(); }

 private:
  std::set<std::string> texts_;
};

/// `record` as bytes for another process of the same version.
std::string to_bytes(const CallRecord& record);

/// What to_bytes has made on `node`, with its texts in `texts`. Throws LinkError when it is none.
CallRecord call_record_of(const std::string& bytes, int node, RecordTexts& texts);

}  // namespace tandem::comm
