// Files and directories that are read, perhaps a stranger's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

namespace tandem::io {

enum class Links { refuse, follow };

/// A file that is open: no pipe, and no link unless they are followed. Throws CheckpointError that names it as `shown`.
class ReadFile {
 public:
  ReadFile(const std::string& path, std::string shown, Links links = Links::refuse);
  ~ReadFile();
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  std::uint64_t bytes() const { return bytes_; }

  /// Reads on; fewer than `most` bytes only at the end.
  std::size_t read(char* to, std::size_t most) const;

  /// Reads from `position` on; `read` goes on where it was.
  std::size_t read_at(std::uint64_t position, char* to, std::size_t most) const;

  /// Reads all bytes() to `to`, or to nowhere if that is null, by several threads; returns their CRC-32. Throws
  /// CheckpointError, also when the file has become shorter.
  std::uint32_t read_whole(char* to) const;

 private:
  std::uint32_t read_piece(std::uint64_t begin, std::uint64_t end, char* to) const;
  template <class ReadSome>
  std::size_t read_all(char* to, std::size_t most, const ReadSome& read_some) const;

  const std::string shown_;
  int fd_;
  std::uint64_t bytes_ = 0;
};

/// A directory that stays the same one while another takes its place, where there is a /proc. Throws CheckpointError.
class OpenDirectory {
 public:
  explicit OpenDirectory(const std::string& path);
  ~OpenDirectory();
  OpenDirectory(const OpenDirectory&) = delete;
  OpenDirectory& operator=(const OpenDirectory&) = delete;

  /// A path to the entry `name` of this very directory.
  std::string operator/(const std::string& name) const;

 private:
  int fd_;
  std::string path_;  // that leads to it
};

/// The text of a small file. Throws CheckpointError, also when it has more than `most` bytes.
std::string read_text(const std::string& path, const std::string& shown, std::uint64_t most);

/// The JSON in `text`; a discarded value when it is none, or is nested more deeply than any of ours.
nlohmann::json parse_json(const std::string& text);

}  // namespace tandem::io
