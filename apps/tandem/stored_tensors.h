#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "io/checkpoint_source.h"
#include "io/safetensors_header.h"

namespace tandem_tool {

/// The tensors of a file of safetensors or of torch.save, or of a directory of them. Their bytes are read when a tensor
/// is asked for. Throws tandem::CheckpointError.
class StoredTensors {
 public:
  struct Entry {
    std::string file;                 ///< name in the directory; empty for a file alone
    tandem::io::StoredTensor tensor;  ///< of torch.save: with the types' names in Python where safetensors has none
    at::Tensor mapped{};              ///< of torch.save: in the file's pages
  };

  /// Reads the headers, and compares them with the files' sizes and the index. `stem`: which model's of a directory.
  explicit StoredTensors(const std::string& path, const std::string& stem = "model");

  const std::vector<Entry>& entries() const { return entries_; }
  const Entry* find(const std::string& name) const;
  std::uint64_t bytes() const;  ///< of all tensors
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The directory; null for a file alone.
  const tandem::io::CheckpointSource* source() const { return source_ ? &*source_ : nullptr; }

  /// Throws also when LibTorch has no such type.
  at::Tensor read(const Entry& entry) const;

  /// Its elements as they are stored, one after the other.
  at::Tensor read_bytes(const Entry& entry) const;

 private:
  void add_safetensors(const std::string& location, const std::string& shown, const std::string& file);
  void add_pickled(const std::string& location, const std::string& shown, const std::string& file);
  void add(const std::string& shown, Entry entry);
  std::string location_of(const Entry& entry) const;

  const std::string path_;
  std::optional<tandem::io::CheckpointSource> source_;
  std::vector<Entry> entries_;
  std::map<std::string, std::size_t> by_name_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace tandem_tool
