// A file that grows, record by record.
#pragma once

#include <string>
#include <string_view>

namespace tandem::io {

/// Makes `directory` and those above it. Throws Error that names it.
void make_directories(const std::string& directory);

/// Writes `bytes` to `path` in place of what is there. Throws Error that names the file.
void write_file(const std::string& path, std::string_view bytes);

/// Opens `path`, or creates it, to append to it. Throws Error that names the file and what the system says.
class AppendFile {
 public:
  explicit AppendFile(std::string path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  bool empty() const;

  /// Removes what comes after the last newline: the part of a line that a killed process has left.
  void remove_cut_line();

  /// Appends `record` by one system call, so that it is in the file as a whole however the process ends. Throws Error
  /// also when the file has been deleted, since nobody would ever read it.
  void append(std::string_view record);

 private:
  const std::string path_;
  int fd_;
};

}  // namespace tandem::io
