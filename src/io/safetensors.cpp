#include "tandem/io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <set>

#include <ATen/Functions.h>
#include <nlohmann/json.hpp>

#include "io/checkpoint_error.h"
#include "io/file_bytes.h"
#include "io/json_text.h"
#include "io/output_file.h"
#include "io/read_file.h"
#include "io/safetensors_header.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

using Json = nlohmann::ordered_json;
using ParsedJson = nlohmann::json;  // finds names quickly, however many a stranger's file has

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::uint64_t kMostHeaderBytes = 100'000'000;  // the reference implementation's limit

struct TypeName {
  const char* name;
  std::uint64_t bits;  // of an element
  std::optional<at::ScalarType> type;
};
// All of version 0.8 of the reference implementation. LibTorch's float4 has two numbers in an element.
const std::array kTypeNames{TypeName{"F64", 64, at::kDouble},
                            TypeName{"F32", 32, at::kFloat},
                            TypeName{"F16", 16, at::kHalf},
                            TypeName{"BF16", 16, at::kBFloat16},
                            TypeName{"I64", 64, at::kLong},
                            TypeName{"I32", 32, at::kInt},
                            TypeName{"I16", 16, at::kShort},
                            TypeName{"I8", 8, at::kChar},
                            TypeName{"U8", 8, at::kByte},
                            TypeName{"BOOL", 8, at::kBool},
                            TypeName{"U16", 16, at::kUInt16},
                            TypeName{"U32", 32, at::kUInt32},
                            TypeName{"U64", 64, at::kUInt64},
                            TypeName{"C64", 64, at::kComplexFloat},
                            TypeName{"F8_E5M2", 8, at::kFloat8_e5m2},
                            TypeName{"F8_E4M3", 8, at::kFloat8_e4m3fn},
                            TypeName{"F8_E5M2FNUZ", 8, at::kFloat8_e5m2fnuz},
                            TypeName{"F8_E4M3FNUZ", 8, at::kFloat8_e4m3fnuz},
                            TypeName{"F8_E8M0", 8, at::kFloat8_e8m0fnu},
                            TypeName{"F4", 4, at::kFloat4_e2m1fn_x2},
                            TypeName{"F6_E2M3", 6, std::nullopt},
                            TypeName{"F6_E3M2", 6, std::nullopt}};

const char* name_of(const std::string& path, const std::string& tensor, at::ScalarType type) {
  const auto* found = std::find_if(kTypeNames.begin(), kTypeNames.end(), [&](const auto& t) { return t.type == type; });
  if (found == kTypeNames.end())
    throw_checkpoint_error(
        path, "tensor '" + tensor + "' has type " + c10::toString(type) +
                  ", which safetensors does not have; keep it in an object that is registered for checkpointing, or "
                  "as another type");
  return found->name;
}

std::vector<std::int64_t> shape_of(const std::string& path, const std::string& name, const at::Tensor& tensor) {
  std::vector<std::int64_t> shape = tensor.sizes().vec();
  if (tensor.scalar_type() != at::kFloat4_e2m1fn_x2) return shape;
  if (shape.empty())
    throw_checkpoint_error(path, "tensor '" + name + "' is a single pair of float4, which safetensors does not have");
  shape.back() *= 2;
  return shape;
}

std::string make_header(const std::string& path, const NamedTensors& tensors,
                        const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    check_is_utf8(name, path, "the name of tensor");
    if (name == "__metadata__" || header.contains(name))
      throw_checkpoint_error(path, "the name '" + name + "' is used twice");
    if (!tensor.defined() || tensor.layout() != at::kStrided)
      throw_checkpoint_error(path, "tensor '" + name + "' is not dense");
    const std::uint64_t bytes = tensor.nbytes();
    header[name] = {{"dtype", name_of(path, name, tensor.scalar_type())},
                    {"shape", shape_of(path, name, tensor)},
                    {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = exact_json(header, path);
  if (text.size() > kMostHeaderBytes - 64)
    throw_checkpoint_error(path, "would have a header of more bytes than the format allows");
  constexpr std::size_t kAlignment = 64;  // the format wants 8
  text.resize((8 + text.size() + kAlignment - 1) / kAlignment * kAlignment - 8, ' ');
  return text;
}

std::uint64_t unsigned_number(const std::string& path, const std::string& field, const ParsedJson& value) {
  if (!value.is_number_unsigned()) throw_checkpoint_error(path, field + " is no whole number of 0 or more");
  return value.get<std::uint64_t>();
}

StoredTensor parse_entry(const std::string& path, const std::string& name, const ParsedJson& value) {
  const std::string where = "tensor '" + name + "'";
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") || !value.contains("data_offsets"))
    throw_checkpoint_error(path, where + " lacks dtype, shape or data_offsets");
  if (!value["dtype"].is_string() || !value["shape"].is_array() || !value["data_offsets"].is_array() ||
      value["data_offsets"].size() != 2)
    throw_checkpoint_error(path, where + " has a dtype, shape or data_offsets of the wrong kind");
  const auto type_name = value["dtype"].get<std::string>();
  const auto* type =
      std::find_if(kTypeNames.begin(), kTypeNames.end(), [&](const auto& t) { return type_name == t.name; });
  if (type == kTypeNames.end()) throw_checkpoint_error(path, where + " has the unknown dtype '" + type_name + "'");
  StoredTensor entry{.name = name, .dtype = type_name, .type = type->type, .shape = {}, .begin = 0, .end = 0};
  std::uint64_t bits = type->bits;
  bool empty = false;
  for (const ParsedJson& dim : value["shape"]) {
    const std::uint64_t size = unsigned_number(path, where + " shape", dim);
    entry.shape.push_back(static_cast<std::int64_t>(size));
    empty = empty || size == 0;
    if (size > (std::uint64_t{1} << 48) || (size > 0 && bits > (std::uint64_t{1} << 62) / size))
      throw_checkpoint_error(path, where + " has an impossible shape");
    if (size > 0) bits *= size;
  }
  if (!empty && bits % 8 != 0)
    throw_checkpoint_error(path, where + " of the type " + type_name + " does not fill whole bytes");
  const std::uint64_t bytes = empty ? 0 : bits / 8;
  entry.begin = unsigned_number(path, where + " data_offsets", value["data_offsets"][0]);
  entry.end = unsigned_number(path, where + " data_offsets", value["data_offsets"][1]);
  if (entry.end < entry.begin || entry.end - entry.begin != bytes)
    throw_checkpoint_error(
        path, where + " has data_offsets that do not fit its shape: " + std::to_string(bytes) + " bytes are needed");
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
    throw_checkpoint_error(path, "has a header that is no JSON: " + as_utf8(error.what()));
  }
  if (too_deep) throw_checkpoint_error(path, "has a header that is nested too deeply");
  if (!header.is_object()) throw_checkpoint_error(path, "has a header that is no JSON object");
  if (!repeated.empty()) throw_checkpoint_error(path, "has the tensor '" + repeated + "' twice");
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
    if (entry.begin != at)
      throw_checkpoint_error(path, "tensor '" + entry.name + "' overlaps another, or there is a gap before it");
    at = entry.end;
  }
  if (at != data_bytes)
    throw_checkpoint_error(path, "is cut off or too long: " + std::to_string(data_bytes) +
                                     " bytes of data, the header names " + std::to_string(at));
}

}  // namespace

void check_safetensors(const std::string& shown, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  make_header(shown, tensors, metadata);
}

void write_safetensors(const WriteBytes& write, const std::string& shown, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string header = make_header(shown, tensors, metadata);
  const std::uint64_t length = header.size();
  write(&length, sizeof length);
  write(header.data(), header.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor bytes = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous();
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
  if (file_bytes < sizeof header_bytes) throw_checkpoint_error(path, "is too short for safetensors");
  std::memcpy(&header_bytes, first_bytes, sizeof header_bytes);
  if (header_bytes > kMostHeaderBytes || header_bytes > file_bytes - 8)
    throw_checkpoint_error(
        path, "is no safetensors file, or cut off: it names a header of " + std::to_string(header_bytes) + " bytes");
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
  if (file.read(text.data(), text.size()) != text.size())
    throw_checkpoint_error(path, "has become shorter while it was read");
  return header_of(path, text, file.bytes());
}

std::string safetensors_type(at::ScalarType type) { return name_of("safetensors", "", type); }

bool StoredTensor::is_floating() const { return dtype.starts_with('F') || dtype.starts_with("BF"); }

std::vector<std::int64_t> StoredTensor::sizes(const std::string& shown) const {
  if (!type)
    throw_checkpoint_error(shown, "tensor '" + name + "' has the type " + dtype + ", which LibTorch does not have");
  std::vector<std::int64_t> sizes = shape;
  if (type != at::kFloat4_e2m1fn_x2) return sizes;
  if (sizes.empty() || sizes.back() % 2 != 0)
    throw_checkpoint_error(shown,
                           "tensor '" + name + "' has an odd number of float4 in a row, which LibTorch has in pairs");
  sizes.back() /= 2;
  return sizes;
}

NamedTensors safetensors_in(const at::Tensor& file, const std::string& shown) {
  const char* const bytes = static_cast<const char*>(file.const_data_ptr());
  const std::uint64_t header_bytes = header_bytes_of(shown, bytes, file.nbytes());
  NamedTensors tensors;
  for (const StoredTensor& entry : header_of(shown, std::string(bytes + 8, header_bytes), file.nbytes()).tensors) {
    const auto sizes = entry.sizes(shown);
    const at::Tensor part = part_of(file, entry.begin, entry.bytes(), c10::elementSize(*entry.type));
    tensors.emplace_back(entry.name, part.view(*entry.type).view(sizes));
  }
  return tensors;
}

NamedTensors load_safetensors(const std::string& location, const std::string& shown) {
  const std::string& path = shown.empty() ? location : shown;
  read_safetensors_header(location, path);  // what is no such file is not read as a whole
  return safetensors_in(load_bytes(location, path, Links::follow), path);
}

void check_writable(const std::string& path) { OutputFile(path).check(); }

}  // namespace tandem::io
