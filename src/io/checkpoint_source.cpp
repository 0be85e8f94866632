#include "io/checkpoint_source.h"

#include <filesystem>
#include <system_error>

#include "io/file_bytes.h"
#include "io/safetensors_header.h"

namespace tandem::io {

namespace fs = std::filesystem;

CheckpointSource::CheckpointSource(const std::string& directory) : directory_(directory), open_(directory) {
  std::error_code error;
  const auto status = fs::symlink_status(open_ / "manifest.json", error);
  if (status.type() == fs::file_type::not_found) return;
  reader_.emplace(directory);
}

at::Tensor CheckpointSource::load(const std::string& name) {
  if (name.ends_with(".safetensors"))  // what is no such file is not read as a whole
    read_safetensors_header(path_of(name), shown(name));
  else
    check_is_pickle_file(path_of(name), shown(name));
  if (!reader_) return load_bytes(path_of(name), shown(name));
  at::Tensor file = room_for(reader_->bytes_of(name), shown(name));
  reader_->read_to(name, static_cast<char*>(file.mutable_data_ptr()));
  loaded_.insert(name);
  return file;
}

void CheckpointSource::verify() const {
  if (!reader_) return;
  for (const std::string& name : reader_->names())
    if (!loaded_.contains(name)) reader_->verify(name);
}

bool CheckpointSource::has(const std::string& name) const {
  std::error_code error;
  return reader_ ? reader_->has(name) : fs::exists(open_ / name, error);
}

std::string CheckpointSource::path_of(const std::string& name) const {
  if (reader_) return reader_->path_of(name);
  // Hugging Face's cache has links to its files.
  std::error_code error;
  const fs::path followed = fs::canonical(open_ / name, error);
  return error ? open_ / name : followed.string();
}

}  // namespace tandem::io
