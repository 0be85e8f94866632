#include "tandem/comm/call_record.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <sstream>

#include <cxxabi.h>

namespace tandem::comm {
namespace {

// The name of a type as the program has it, of the compiler's.
std::string readable(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : name;
}

}  // namespace

CallRecord describe_object_call(Operation operation, const std::type_info& type) {
  CallRecord record{.operation = operation};
  record.signature = type.hash_code();
  record.type = type.name();
  return record;
}

const char* to_string(Operation operation) {
  switch (operation) {
    case Operation::barrier: return "barrier";
    case Operation::all_reduce: return "all_reduce";
    case Operation::reduce: return "reduce";
    case Operation::broadcast: return "broadcast";
    case Operation::all_gather: return "all_gather";
    case Operation::reduce_scatter: return "reduce_scatter";
    case Operation::all_to_all: return "all_to_all";
    case Operation::gather_objects: return "gather_objects";
    case Operation::broadcast_object: return "broadcast_object";
    case Operation::check_trigger: return "check_trigger";
    case Operation::prepare: return "prepare";
    case Operation::reduce_gradients: return "reduce_gradients";
    case Operation::share_weights: return "share_weights";
    case Operation::optimizer_step: return "optimizer_step";
    case Operation::clip_gradients: return "clip_gradients";
    case Operation::main_first: return "main_first";
    case Operation::join_uneven_inputs: return "join_uneven_inputs";
    case Operation::find_executable_batch_size: return "find_executable_batch_size";
    case Operation::connect: return "connect";
    case Operation::compile_step: return "compile_step";
    case Operation::pad_across_ranks: return "pad_across_ranks";
    case Operation::local_sgd: return "local_sgd";
  }
  return "unknown operation";
}

std::string to_string(const CallRecord& record) {
  std::ostringstream text;
  text << to_string(record.operation);
  if (record.operation == Operation::all_reduce || record.operation == Operation::reduce ||
      record.operation == Operation::reduce_scatter)
    text << '(' << to_string(record.reduce) << ')';
  if (record.root >= 0) text << (record.operation == Operation::reduce ? " to rank " : " from rank ") << record.root;
  if (record.dims >= 0) {
    text << " of " << record.type << '[';
    const int shown = std::min<int>(record.dims, static_cast<int>(record.sizes.size()));
    for (int dim = 0; dim < shown; ++dim) text << (dim > 0 ? ", " : "") << record.sizes[dim];
    text << (record.dims > shown ? ", ...]" : "]");
    if (record.tensors > 1) text << " and " << record.tensors - 1 << " more";
    if (record.elements > 0) text << " (" << record.elements << " elements)";
  } else if (record.operation == Operation::gather_objects || record.operation == Operation::broadcast_object) {
    text << " of " << readable(record.type);
  }
  return text.str();
}

}  // namespace tandem::comm
