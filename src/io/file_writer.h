// A file that is written from beginning to end.
#pragma once

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <string>

namespace tandem::io {

/// While it lives, what this thread cannot write is an error of the call and no signal, which would end a process that
/// does not expect it: SIGPIPE of a pipe that nobody reads, SIGXFSZ of a file beyond the process's limit.
class NoWriteSignals {
 public:
  NoWriteSignals();
  ~NoWriteSignals();
  NoWriteSignals(const NoWriteSignals&) = delete;
  NoWriteSignals& operator=(const NoWriteSignals&) = delete;

 private:
  sigset_t made_{};  // of the two those that were not pending before
  sigset_t before_{};
};

/// Throws CheckpointError that names the file as `shown` (empty: its path) and what the system says.
class FileWriter {
 public:
  /// Creates `path`, which must not exist, and removes it again unless it is finished.
  explicit FileWriter(std::string path, std::string shown = {});

  /// Writes to the open descriptor `fd`, of a file, a device or a pipe, and closes it.
  FileWriter(int fd, std::string shown);

  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(const void* data, std::size_t bytes);

  /// Returns when everything is on the disk, where the file system can say so; or has been given on.
  void finish();

  std::uint64_t bytes() const { return bytes_; }
  std::uint32_t crc32() const { return crc32_; }  ///< of what was written; zlib's

 private:
  void write_part(const unsigned char* at, std::size_t bytes);

  const std::string path_, shown_;  // path_: what is created; empty: nothing is
  int fd_;
  std::uint64_t bytes_ = 0;
  std::uint32_t crc32_ = 0;
  bool finished_ = false;
};

/// Makes sure that the names in `directory` are on the disk, where the file system can. Throws CheckpointError.
void sync_directory(const std::string& directory);

/// Whether `path` is the file that is open as `fd`: another process may have removed it, and made another.
bool is_still(const std::string& path, int fd);

/// The system's text for errno.
std::string system_error();

/// The result of a system call that a signal may interrupt.
template <class Call>
auto again(const Call& call) {
  for (;;)
    if (const auto result = call(); result >= 0 || errno != EINTR) return result;
}

}  // namespace tandem::io
