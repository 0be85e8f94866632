#include "tandem/comm/call_record.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace tandem::comm {
namespace {

// FNV-1a over 64-bit words (Fowler, Noll, Vo). It need not resist attacks, only tell different calls apart.
class Signature {
 public:
  void add(std::uint64_t word) { hash_ = (hash_ ^ word) * 0x100000001b3ull; }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325ull;
};

}  // namespace

CallRecord describe_call(Operation operation, at::TensorList tensors, SizeCheck check) {
  CallRecord record{.operation = operation};
  record.tensors = static_cast<std::int32_t>(tensors.size());
  Signature signature;
  const std::size_t first_checked = check == SizeCheck::all ? 0 : 1;
  for (const at::Tensor& tensor : tensors) {
    signature.add(static_cast<std::uint64_t>(tensor.scalar_type()));
    const auto sizes = tensor.sizes();
    // A 0-dim tensor is gathered as if it had one row.
    signature.add(first_checked == 1 ? std::max<std::size_t>(sizes.size(), 1) : sizes.size());
    for (std::size_t dim = first_checked; dim < sizes.size(); ++dim) signature.add(sizes[dim]);
    if (check == SizeCheck::all) record.elements += tensor.numel();
  }
  record.signature = signature.value();
  if (!tensors.empty()) {
    const auto sizes = tensors.front().sizes();
    record.type = tensors.front().scalar_type();
    record.dims = static_cast<std::int8_t>(std::min<std::size_t>(sizes.size(), 127));
    for (std::size_t dim = 0; dim < std::min(sizes.size(), record.sizes.size()); ++dim)
      record.sizes[dim] = static_cast<std::int32_t>(std::min<std::int64_t>(sizes[dim], INT32_MAX));
  }
  return record;
}

CallRecord describe_object_call(Operation operation, const std::type_info& type) {
  CallRecord record{.operation = operation};
  record.signature = type.hash_code();
  return record;
}

const char* to_string(Operation operation) {
  switch (operation) {
    case Operation::barrier: return "barrier";
    case Operation::all_reduce: return "all_reduce";
    case Operation::broadcast: return "broadcast";
    case Operation::all_gather: return "all_gather";
    case Operation::reduce_scatter: return "reduce_scatter";
    case Operation::gather_objects: return "gather_objects";
    case Operation::broadcast_object: return "broadcast_object";
    case Operation::check_trigger: return "check_trigger";
    case Operation::prepare: return "prepare";
    case Operation::main_first: return "main_first";
    case Operation::join_uneven_inputs: return "join_uneven_inputs";
    case Operation::find_executable_batch_size: return "find_executable_batch_size";
  }
  return "unknown operation";
}

const char* to_string(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return "sum";
    case ReduceOp::mean: return "mean";
    case ReduceOp::max: return "max";
    case ReduceOp::min: return "min";
  }
  return "unknown reduction";
}

std::string to_string(const CallRecord& record) {
  std::ostringstream text;
  text << to_string(record.operation);
  if (record.operation == Operation::all_reduce || record.operation == Operation::reduce_scatter)
    text << '(' << to_string(record.reduce) << ')';
  if (record.root >= 0) text << " from rank " << record.root;
  if (record.dims >= 0) {
    text << " of " << c10::toString(record.type) << '[';
    const int shown = std::min<int>(record.dims, static_cast<int>(record.sizes.size()));
    for (int dim = 0; dim < shown; ++dim) text << (dim > 0 ? ", " : "") << record.sizes[dim];
    text << (record.dims > shown ? ", ...]" : "]");
    if (record.tensors > 1) text << " and " << record.tensors - 1 << " more";
    if (record.elements > 0) text << " (" << record.elements << " elements)";
  }
  return text.str();
}

}  // namespace tandem::comm
