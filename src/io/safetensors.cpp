#include "tandem/io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <set>

#include <ATen/Functions.h>
#include <nlohmann/json.hpp>

#include "io/file_bytes.h"
#include "io/output_file.h"
#include "io/read_file.h"
#include "tandem/core/error.h"
#include "tandem/io/safetensors_header.h"

namespace tandem::io {
namespace {

using Json = nlohmann::ordered_json;
using ParsedJson = nlohmann::json;  // finds names quickly, however many a stranger's file has

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::uint64_t kMostHeaderBytes = 100'000'000;  // the reference implementation's limit

struct TypeName {
  at::ScalarType type;
  const char* name;
};
constexpr std::array kTypeNames{TypeName{at::kDouble, "F64"},
                                TypeName{at::kFloat, "F32"},
                                TypeName{at::kHalf, "F16"},
                                TypeName{at::kBFloat16, "BF16"},
                                TypeName{at::kLong, "I64"},
                                TypeName{at::kInt, "I32"},
                                TypeName{at::kShort, "I16"},
                                TypeName{at::kChar, "I8"},
                                TypeName{at::kByte, "U8"},
                                TypeName{at::kBool, "BOOL"},
                                TypeName{at::kUInt16, "U16"},
                                TypeName{at::kUInt32, "U32"},
                                TypeName{at::kUInt64, "U64"},
                                TypeName{at::kFloat8_e5m2, "F8_E5M2"},
                                TypeName{at::kFloat8_e4m3fn, "F8_E4M3"},
                                TypeName{at::kComplexFloat, "C64"}};

[[noreturn]] void fail(const std::string& path, const std::string& problem) {
  throw CheckpointError(path + ": " + problem);
}

const char* name_of(const std::string& path, const std::string& tensor, at::ScalarType type) {
  const auto* found = std::find_if(kTypeNames.begin(), kTypeNames.end(), [&](const auto& t) { return t.type == type; });
  if (found == kTypeNames.end())
    fail(path, "tensor '" + tensor + "' has type " + c10::toString(type) + ", which safetensors does not have");
  return found->name;
}

std::string make_header(const std::string& path, const NamedTensors& tensors,
                        const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    if (name == "__metadata__" || header.contains(name)) fail(path, "the name '" + name + "' is used twice");
    if (!tensor.defined() || tensor.layout() != at::kStrided) fail(path, "tensor '" + name + "' is not dense");
    const std::uint64_t bytes = tensor.nbytes();
    header[name] = {{"dtype", name_of(path, name, tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  constexpr std::size_t kAlignment = 64;  // the format wants 8
  text.resize((8 + text.size() + kAlignment - 1) / kAlignment * kAlignment - 8, ' ');
  return text;
}

std::uint64_t unsigned_number(const std::string& path, const std::string& field, const ParsedJson& value) {
  if (!value.is_number_unsigned()) fail(path, field + " is no whole number of 0 or more");
  return value.get<std::uint64_t>();
}

StoredTensor parse_entry(const std::string& path, const std::string& name, const ParsedJson& value) {
  const std::string where = "tensor '" + name + "'";
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") || !value.contains("data_offsets"))
    fail(path, where + " lacks dtype, shape or data_offsets");
  if (!value["dtype"].is_string() || !value["shape"].is_array() || !value["data_offsets"].is_array() ||
      value["data_offsets"].size() != 2)
    fail(path, where + " has a dtype, shape or data_offsets of the wrong kind");
  const auto type_name = value["dtype"].get<std::string>();
  const auto* type =
      std::find_if(kTypeNames.begin(), kTypeNames.end(), [&](const auto& t) { return type_name == t.name; });
  if (type == kTypeNames.end()) fail(path, where + " has the unknown dtype '" + type_name + "'");
  StoredTensor entry{.name = name, .type = type->type, .shape = {}, .begin = 0, .end = 0};
  std::uint64_t bytes = c10::elementSize(type->type);
  bool empty = false;
  for (const ParsedJson& dim : value["shape"]) {
    const std::uint64_t size = unsigned_number(path, where + " shape", dim);
    entry.shape.push_back(static_cast<std::int64_t>(size));
    empty = empty || size == 0;
    if (size > (std::uint64_t{1} << 48) || (size > 0 && bytes > (std::uint64_t{1} << 62) / size))
      fail(path, where + " has an impossible shape");
    if (size > 0) bytes *= size;
  }
  if (empty) bytes = 0;
  entry.begin = unsigned_number(path, where + " data_offsets", value["data_offsets"][0]);
  entry.end = unsigned_number(path, where + " data_offsets", value["data_offsets"][1]);
  if (entry.end < entry.begin || entry.end - entry.begin != bytes)
    fail(path, where + " has data_offsets that do not fit its shape: " + std::to_string(bytes) + " bytes are needed");
  return entry;
}

// nlohmann-json lets the last of equal keys win; here they are an error.
ParsedJson parse_header(const std::string& path, const std::string& text) {
  std::set<std::string> names;
  std::string repeated;
  constexpr int kDeepest = 4;
  bool too_deep = false;
  const auto watch_names = [&](int depth, ParsedJson::parse_event_t event, ParsedJson& parsed) {
    if (event == ParsedJson::parse_event_t::key && depth == 1 && !names.insert(parsed.get<std::string>()).second)
      repeated = parsed.get<std::string>();
    too_deep = too_deep || depth > kDeepest;
    return !too_deep;  // what is discarded takes no memory
  };
  ParsedJson header;
  try {
    header = ParsedJson::parse(text, watch_names);
  } catch (const ParsedJson::exception& error) {
    fail(path, std::string("has a header that is no JSON: ") + error.what());
  }
  if (too_deep) fail(path, "has a header that is nested too deeply");
  if (!header.is_object()) fail(path, "has a header that is no JSON object");
  if (!repeated.empty()) fail(path, "has the tensor '" + repeated + "' twice");
  return header;
}

void sort_by_place(std::vector<StoredTensor>& entries) {
  std::sort(entries.begin(), entries.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
}

void check_no_gaps(const std::string& path, const std::vector<StoredTensor>& entries, std::uint64_t data_bytes) {
  std::uint64_t at = 0;
  for (const StoredTensor& entry : entries) {
    if (entry.begin != at) fail(path, "tensor '" + entry.name + "' overlaps another, or there is a gap before it");
    at = entry.end;
  }
  if (at != data_bytes)
    fail(path, "is cut off or too long: " + std::to_string(data_bytes) + " bytes of data, the header names " +
                   std::to_string(at));
}

}  // namespace

void write_safetensors(const WriteBytes& write, const std::string& shown, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string header = make_header(shown, tensors, metadata);
  const std::uint64_t length = header.size();
  write(&length, sizeof length);
  write(header.data(), header.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor bytes = tensor.detach().cpu().contiguous();
    write(bytes.const_data_ptr(), bytes.nbytes());
  }
}

void save_safetensors(const std::string& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata) {
  OutputFile(path).write([&](const WriteBytes& write) { write_safetensors(write, path, tensors, metadata); });
}

namespace {

// Bytes of the header's text, in a file that begins with `first_bytes`.
std::uint64_t header_bytes_of(const std::string& path, const char* first_bytes, std::uint64_t file_bytes) {
  std::uint64_t header_bytes = 0;
  if (file_bytes < sizeof header_bytes) fail(path, "is too short for safetensors");
  std::memcpy(&header_bytes, first_bytes, sizeof header_bytes);
  if (header_bytes > kMostHeaderBytes || header_bytes > file_bytes - 8)
    fail(path, "is no safetensors file, or cut off: it names a header of " + std::to_string(header_bytes) + " bytes");
  return header_bytes;
}

SafetensorsHeader header_of(const std::string& path, const std::string& text, std::uint64_t file_bytes) {
  const ParsedJson parsed = parse_header(path, text);
  SafetensorsHeader header;
  for (const auto& [name, value] : parsed.items())
    if (name != "__metadata__") header.tensors.push_back(parse_entry(path, name, value));
  sort_by_place(header.tensors);
  check_no_gaps(path, header.tensors, file_bytes - 8 - text.size());
  for (StoredTensor& tensor : header.tensors) {
    tensor.begin += 8 + text.size();
    tensor.end += 8 + text.size();
  }
  if (const auto metadata = parsed.find("__metadata__"); metadata != parsed.end() && metadata->is_object())
    for (const auto& [key, value] : metadata->items())
      if (value.is_string()) header.metadata[key] = value.get<std::string>();
  return header;
}

}  // namespace

SafetensorsHeader read_safetensors_header(const std::string& location, const std::string& shown) {
  const std::string& path = shown.empty() ? location : shown;
  const ReadFile file(location, path, Links::follow);
  char first[8] = {};
  file.read(first, sizeof first);
  std::string text(header_bytes_of(path, first, file.bytes()), '\0');
  if (file.read(text.data(), text.size()) != text.size()) fail(path, "has become shorter while it was read");
  return header_of(path, text, file.bytes());
}

std::string safetensors_type(at::ScalarType type) { return name_of("safetensors", "", type); }

NamedTensors safetensors_in(const at::Tensor& file, const std::string& shown) {
  const char* const bytes = static_cast<const char*>(file.const_data_ptr());
  const std::uint64_t header_bytes = header_bytes_of(shown, bytes, file.nbytes());
  NamedTensors tensors;
  for (const StoredTensor& entry : header_of(shown, std::string(bytes + 8, header_bytes), file.nbytes()).tensors)
    tensors.emplace_back(
        entry.name,
        part_of(file, entry.begin, entry.bytes(), c10::elementSize(entry.type)).view(entry.type).view(entry.shape));
  return tensors;
}

NamedTensors load_safetensors(const std::string& location, const std::string& shown) {
  const std::string& path = shown.empty() ? location : shown;
  read_safetensors_header(location, path);  // what is no such file is not read as a whole
  return safetensors_in(load_bytes(location, path, Links::follow), path);
}

void check_writable(const std::string& path) { OutputFile(path).check(); }

}  // namespace tandem::io
