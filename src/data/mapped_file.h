#pragma once

#include <cstdint>
#include <string>

namespace tandem::data {

/// A file in memory, read-only, its pages those of the system's file cache: however many map it, there is one copy.
/// The file must not shrink while it is mapped.
class MappedFile {
 public:
  /// Throws DataError when the file is missing, no regular file, empty or unreadable.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  /// The first byte, at the beginning of a page.
  const void* data() const { return data_; }
  /// In bytes, at least 1.
  std::int64_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  std::int64_t size_ = 0;
};

}  // namespace tandem::data
