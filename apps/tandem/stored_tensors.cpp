#include "stored_tensors.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include <ATen/Functions.h>

#include "io/file_bytes.h"
#include "io/model_source.h"
#include "io/scalar_types.h"
#include "tandem/core/error.h"
#include "value_diff.h"

namespace tandem_tool {

namespace io = tandem::io;

namespace {

// The file's bytes, which the kernel reads as they are asked for; writing to them leaves the file as it is.
at::Tensor map_file(const std::string& location, const std::string& shown) {
  const io::ReadFile file(location, shown, io::Links::follow);
  return at::from_file(location, /*shared=*/false, static_cast<std::int64_t>(file.bytes()), at::kByte);
}

std::string type_name(at::ScalarType type) {
  try {
    return io::safetensors_type(type);
  } catch (const tandem::CheckpointError&) {
    return io::python_name(type);
  }
}

}  // namespace

StoredTensors::StoredTensors(const std::string& path, const std::string& stem) : path_(path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    io::is_pickle_file(path, path) ? add_pickled(path, path, "") : add_safetensors(path, path, "");
    return;
  }
  source_.emplace(path);
  const io::ModelSource model(*source_, stem);
  for (const std::string& file : model.files()) {
    const std::string location = source_->path_of(file), shown = source_->shown(file);
    model.of_torch_save() ? add_pickled(location, shown, file) : add_safetensors(location, shown, file);
  }
  model.check_places([&](const std::string& name) {
    const Entry* entry = find(name);
    return entry ? source_->shown(entry->file) : std::string();
  });
}

void StoredTensors::add_safetensors(const std::string& location, const std::string& shown, const std::string& file) {
  const io::SafetensorsHeader header = io::read_safetensors_header(location, shown);
  for (const auto& tensor : header.tensors) add(shown, {file, tensor});
  metadata_.insert(header.metadata.begin(), header.metadata.end());
}

void StoredTensors::add_pickled(const std::string& location, const std::string& shown, const std::string& file) {
  io::check_is_pickle_file(location, shown, io::Links::follow);
  for (auto& [name, tensor] : io::pickled_tensors_in(map_file(location, shown), shown)) {
    io::StoredTensor stored{.name = name,
                            .dtype = type_name(tensor.scalar_type()),
                            .type = tensor.scalar_type(),
                            .shape = tensor.sizes().vec(),
                            .begin = 0,
                            .end = tensor.nbytes()};
    if (stored.type == at::kFloat4_e2m1fn_x2 && !stored.shape.empty()) stored.shape.back() *= 2;
    add(shown, {file, std::move(stored), tensor});
  }
}

void StoredTensors::add(const std::string& shown, Entry entry) {
  if (!by_name_.emplace(entry.tensor.name, entries_.size()).second)
    throw tandem::CheckpointError(shown + ": tensor '" + entry.tensor.name + "' is in another file too");
  entries_.push_back(std::move(entry));
}

const StoredTensors::Entry* StoredTensors::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &entries_[found->second];
}

std::uint64_t StoredTensors::bytes() const {
  std::uint64_t sum = 0;
  for (const Entry& entry : entries_) sum += entry.tensor.bytes();
  return sum;
}

std::string StoredTensors::location_of(const Entry& entry) const {
  return source_ ? source_->path_of(entry.file) : path_;
}

at::Tensor StoredTensors::read(const Entry& entry) const {
  if (entry.mapped.defined()) return entry.mapped;
  const auto sizes = entry.tensor.sizes(entry.file.empty() ? path_ : source_->shown(entry.file));
  const at::Tensor bytes = read_bytes(entry);
  return bytes.view(*entry.tensor.type).view(sizes);
}

at::Tensor StoredTensors::read_bytes(const Entry& entry) const {
  if (entry.mapped.defined()) return element_bytes(entry.mapped);
  at::Tensor bytes = at::empty(static_cast<std::int64_t>(entry.tensor.bytes()), at::kByte);
  std::ifstream file(location_of(entry), std::ios::binary);
  file.seekg(static_cast<std::streamoff>(entry.tensor.begin));
  file.read(static_cast<char*>(bytes.mutable_data_ptr()), static_cast<std::streamsize>(entry.tensor.bytes()));
  if (!file) throw tandem::CheckpointError(path_ + ": tensor '" + entry.tensor.name + "' cannot be read");
  return bytes;
}

}  // namespace tandem_tool
