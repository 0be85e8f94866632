// A file that grows, record by record.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tandem::io {

/// Makes `directory` and those above it. Throws Error that names it.
void make_directories(const std::string& directory);

/// Writes `bytes` to `path` in place of what is there. Throws Error that names the file.
void write_file(const std::string& path, std::string_view bytes);

/// What to do with a named pipe that nobody reads.
enum class Unread {
  refuse,  ///< an Error
  wait,    ///< until somebody does
};

/// Opens `path`, or creates it, to append to it; a link is followed, a pipe or device written to. /dev/stdout,
/// /dev/fd/3 and the file that standard output or standard error goes to are what this process has open already, so
/// that both write to one end. Throws Error that names the file and what the system says. A reader who has gone is an
/// Error too, not a signal.
class AppendFile {
 public:
  explicit AppendFile(std::string path, Unread unread = Unread::refuse);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  /// Whether it keeps what is written, and is this object's to cut: no pipe, no device, no standard stream.
  bool can_be_cut() const { return can_be_cut_; }

  bool empty() const;

  /// Removes what comes after the first `bytes` of a file that can be cut.
  void cut(std::uint64_t bytes);

  /// Removes what comes after the last newline, where it can be cut: the part of a line that a killed process has left.
  void remove_cut_line();

  /// Appends `record`. A file gets it by one system call, so that it is in there as a whole however the process ends.
  /// Throws Error also when the file has been deleted, since nobody would ever read it, and when a pipe's reader takes
  /// nothing for 10 seconds.
  void append(std::string_view record);

  /// Appends what can be without waiting for a reader: all of it to a file. Returns how many bytes. Throws Error, also
  /// when the file had been deleted.
  std::size_t append_some(std::string_view text);

  /// Waits until a reader has made room; no longer than so many milliseconds.
  void wait_for_room(int milliseconds) const;

 private:
  void check_is_there() const;

  const std::string path_;
  int fd_;
  bool can_be_cut_;
};

}  // namespace tandem::io
