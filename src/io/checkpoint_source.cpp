#include "io/checkpoint_source.h"

#include <filesystem>
#include <system_error>

namespace tandem::io {

namespace fs = std::filesystem;

CheckpointSource::CheckpointSource(const std::string& directory) : directory_(directory), open_(directory) {
  std::error_code error;
  const auto status = fs::symlink_status(open_ / "manifest.json", error);
  if (status.type() == fs::file_type::not_found) return;
  reader_.emplace(directory);
}

void CheckpointSource::verify() const {
  if (reader_) reader_->verify();
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
