// What a user has named as a place for output.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "io/file_writer.h"
#include "tandem/io/write_bytes.h"

namespace tandem::io {

/// Where `path` leads if it is a link, also to what is not there yet; otherwise `path`. What names a descriptor, as
/// /dev/stdout and /proc/self/fd/1 do, leads to the descriptor, whatever is open there.
std::string follow_links(std::string path);

/// Whether something is mounted at `path`, so that it cannot be renamed or removed.
bool is_mount_point(const std::string& path);

/// Whether what is at `path` may only grow (chattr +a), as the system keeps records. A file's bytes stay then; in a
/// directory no name is removed or renamed.
bool is_append_only(const std::string& path);

/// Throws CheckpointError, for `shown`, where nothing can be renamed because `directory` is append-only.
void check_renames_in(const std::string& directory, const std::string& shown);

/// A place for output, which stays what it is. A file, or the one that links lead to, is replaced as a whole (what a
/// killed process has left beside it, `.tandem-writing-NAME-…`, goes at the next write); other names of the same file
/// (hard links) keep what it was. Where nothing can take its place (it is a mount point, or its folder cannot be
/// written or is append-only) it is overwritten. A device, a FIFO and a descriptor of the process are streams: bytes go
/// on as they come.
class OutputFile {
 public:
  /// Looks at nothing yet.
  explicit OutputFile(std::string path) : shown_(std::move(path)) {}

  /// Throws ConfigError that says why it cannot be written. Opens no stream, and leaves nothing behind.
  void check() const;

  bool is_stream() const;

  /// Opens a stream, if it is one, before `write` does. Waits for the reader of a FIFO: `gives_up` is asked now and
  /// then whether it shall not, which throws Cancelled. Throws CheckpointError.
  void open(const std::function<bool()>& gives_up = {});

  /// Whether what was opened is what is open as `fd`, and somebody gets it: a file, pipe or socket.
  bool is_open_as(int fd) const;

  /// Has `produce` write everything. Throws CheckpointError, or what `produce` throws; a file that can be replaced is
  /// as it was then.
  void write(const std::function<void(const WriteBytes&)>& produce);

 private:
  struct Place;

  void fail(const std::string& problem) const;

  const std::string shown_;
  std::unique_ptr<FileWriter> stream_;  // that is open
  int fd_ = -1;                         // its descriptor
};

}  // namespace tandem::io
