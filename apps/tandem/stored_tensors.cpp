#include "stored_tensors.h"

#include <filesystem>
#include <fstream>

#include <ATen/Functions.h>

#include "io/model_source.h"
#include "tandem/core/error.h"

namespace tandem_tool {

namespace io = tandem::io;

StoredTensors::StoredTensors(const std::string& path) : path_(path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    add(path, path, "");
    return;
  }
  source_.emplace(path);
  const io::ModelSource model(*source_);
  for (const std::string& file : model.files()) add(source_->path_of(file), source_->shown(file), file);
  model.check_places([&](const std::string& name) {
    const Entry* entry = find(name);
    return entry ? source_->shown(entry->file) : std::string();
  });
}

void StoredTensors::add(const std::string& location, const std::string& shown, const std::string& file) {
  const io::SafetensorsHeader header = io::read_safetensors_header(location, shown);
  for (const auto& tensor : header.tensors) {
    if (!by_name_.emplace(tensor.name, entries_.size()).second)
      throw tandem::CheckpointError(shown + ": tensor '" + tensor.name + "' is in another file too");
    entries_.push_back({file, tensor});
  }
  metadata_.insert(header.metadata.begin(), header.metadata.end());
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
  at::Tensor tensor = at::empty(entry.tensor.shape, entry.tensor.type);
  std::ifstream file(location_of(entry), std::ios::binary);
  file.seekg(static_cast<std::streamoff>(entry.tensor.begin));
  file.read(static_cast<char*>(tensor.mutable_data_ptr()), static_cast<std::streamsize>(entry.tensor.bytes()));
  if (!file) throw tandem::CheckpointError(path_ + ": tensor '" + entry.tensor.name + "' cannot be read");
  return tensor;
}

}  // namespace tandem_tool
