#include "comm/call_record.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <sstream>

#include <cxxabi.h>

#include "comm/nodes/fields.h"

namespace tandem::comm {
namespace {

// The name of a type as the program has it, of the compiler's.
std::string readable(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : name;
}

}  // namespace

CallRecord describe_object_call(const char* operation, const std::type_info& type) {
  CallRecord record{.operation = operation};
  record.signature = type.hash_code();
  record.type = type.name();
  return record;
}

std::string to_string(const CallRecord& record) {
  std::ostringstream text;
  text << record.operation;
  if (record.reduce != kNoReduction) text << '(' << to_string(record.reduce) << ')';
  if (record.root >= 0) text << (record.root_receives ? " to rank " : " from rank ") << record.root;
  if (record.dims >= 0) {
    text << " of " << record.type << '[';
    const int shown = std::min<int>(record.dims, static_cast<int>(record.sizes.size()));
    for (int dim = 0; dim < shown; ++dim) text << (dim > 0 ? ", " : "") << record.sizes[dim];
    text << (record.dims > shown ? ", ...]" : "]");
    if (record.tensors > 1) text << " and " << record.tensors - 1 << " more";
    if (record.elements > 0) text << " (" << record.elements << " elements)";
  } else if (record.shows_type) {
    text << " of " << readable(record.type);
  }
  return text.str();
}

std::string to_bytes(const CallRecord& record) {
  CallRecord plain = record;
  plain.operation = plain.type = nullptr;
  std::string bytes;
  add_field(bytes, record.operation);
  add_field(bytes, record.type);
  add_field(bytes, std::string(reinterpret_cast<const char*>(&plain), sizeof plain));
  return bytes;
}

CallRecord call_record_of(const std::string& bytes, int node, RecordTexts& texts) {
  Fields fields(bytes, node);
  const std::string operation = fields.text(), type = fields.text(), plain = fields.text();
  fields.end();
  constexpr std::size_t kLongest = 4096;
  if (plain.size() != sizeof(CallRecord) || operation.size() > kLongest || type.size() > kLongest)
    throw LinkError(node, "node " + std::to_string(node) + " sent something that is no call");
  CallRecord record;
  std::memcpy(static_cast<void*>(&record), plain.data(), sizeof record);
  record.operation = texts.keep(operation);
  record.type = texts.keep(type);
  return record;
}

}  // namespace tandem::comm
