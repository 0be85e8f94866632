// Where the files of a checkpoint are read.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include <ATen/core/Tensor.h>

#include "io/read_file.h"
#include "tandem/io/checkpoint_directory.h"

namespace tandem::io {

/// A directory of Tandem's, or one of Python's, which has no manifest. It stays the same one while another takes its
/// place.
class CheckpointSource {
 public:
  /// Throws CheckpointError when there is none, or its manifest is damaged.
  explicit CheckpointSource(const std::string& directory);

  /// The bytes of a file, compared with the manifest, where there is one. Throws CheckpointError.
  at::Tensor load(const std::string& name);

  /// Compares all files with the manifest that were not loaded, where there is one. Throws CheckpointError.
  void verify() const;

  bool has(const std::string& name) const;

  /// As long as this object lives.
  std::string path_of(const std::string& name) const;

  /// The file's name for people.
  std::string shown(const std::string& name) const { return directory_ + "/" + name; }

  const std::string& directory() const { return directory_; }

  /// The manifest's; null: there is none.
  const CheckpointReader* reader() const { return reader_ ? &*reader_ : nullptr; }

 private:
  const std::string directory_;
  const OpenDirectory open_;
  std::optional<CheckpointReader> reader_;
  std::set<std::string> loaded_;
};

}  // namespace tandem::io
