#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tandem/io/write_bytes.h"

/// \file
/// Directories that appear whole or not at all, and are known to be whole when they are read: files, and a
/// `manifest.json` with the size and CRC-32 of each and its own:
///
///     {"format": "tandem checkpoint", "version": 1, "info": {…}, "files": {"model.safetensors": {"bytes": …,
///      "crc32": "89abcdef"}, …}, "crc32": "01234567"}
///
/// Which files the checkpoint of a training has is in docs/checkpoints.md, and beside the code that writes them in
/// src/checkpoint/checkpoints.h.
namespace tandem::io {

class OpenDirectory;

/// What the manifest says of a file.
struct CheckpointFile {
  std::uint64_t bytes = 0;  ///< its size
  std::uint32_t crc32 = 0;  ///< of its bytes
};

/// A file to be written: its name, of letters, digits, '.', '_' and '-', no '.' first, and what gives its bytes.
struct NewFile {
  std::string name;                                ///< in the directory
  std::function<void(const WriteBytes&)> produce;  ///< called once, on a thread of the writer's
};

/// What becomes of a checkpoint that is there already when one is written.
enum class Existing {
  replace,  ///< it goes when the new one is whole
  keep      ///< the new one is refused
};

/// Writes a directory: beside its place at first, where each file is synced; `commit` puts it into place. A kill, a
/// full disk or an error at any moment before leaves what was there. Belongs to one thread.
class CheckpointWriter {
 public:
  /// Begins. `path` is a new directory, an empty one, or a checkpoint that will be replaced if `existing` says so; its
  /// parent exists; links are followed. What killed writers of `path` left beside it is removed. Throws
  /// CheckpointError, also when something else is there or in it, and when it is a mount point, which nothing can take
  /// the place of.
  explicit CheckpointWriter(std::string path, Existing existing = Existing::replace);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Writes files, several at once, by threads that have ended when it returns. Throws what their `produce` throws, and
  /// CheckpointError.
  void add(const std::vector<NewFile>& files);

  /// Writes one file with these bytes. Throws CheckpointError.
  void add(const std::string& name, const std::string& bytes);

  /// Puts the directory into place, with `info` in its manifest. Nothing can be added afterwards. Throws
  /// CheckpointError; the directory that was there before is still in place then, unless the error says otherwise.
  void commit(const std::map<std::string, std::string>& info = {});

 private:
  void check_not_committed() const;
  void check_complete() const;
  void write_manifest(const std::map<std::string, std::string>& info);
  void put_into_place();

  const std::string path_, parent_;
  const Existing existing_;
  std::string temporary_;  // empty: none is left
  int lock_ = -1;          // of the temporary directory: its writer is alive
  bool committed_ = false;
  std::map<std::string, CheckpointFile> files_;
};

/// Reads such a directory, which may come from a stranger: names lead nowhere else, and sizes are those of the files.
/// Belongs to one thread.
class CheckpointReader {
 public:
  /// Reads the manifest and looks for the files. Throws CheckpointError that names the file and the field when there is
  /// none, or it is damaged, of a later version, or a file is missing or of another size.
  explicit CheckpointReader(std::string path);

  const std::map<std::string, std::string>& info() const { return info_; }  ///< what `commit` was given
  std::vector<std::string> names() const;  ///< of its files, sorted; without the manifest
  bool has(const std::string& name) const { return files_.contains(name); }  ///< whether there is a file `name`

  /// Size of the file `name`. Throws CheckpointError when there is no such file.
  std::uint64_t bytes_of(const std::string& name) const;

  /// What is in the file `name`. Throws CheckpointError when there is no such file or it is damaged.
  std::string read(const std::string& name) const;

  /// Reads the file `name` into `to`, which has room for bytes_of(name), by several threads. Throws as `read`.
  void read_to(const std::string& name, char* to) const;

  /// A path to the file `name` of the directory that was opened, also when another takes its place. As long as this
  /// object lives. Throws CheckpointError when there is no such file.
  std::string path_of(const std::string& name) const;

  /// Reads all files, or the file `name`, and throws CheckpointError that names one that is damaged.
  void verify() const;
  void verify(const std::string& name) const;  ///< \copydoc verify()

 private:
  const CheckpointFile& find(const std::string& name) const;
  void read_checked(const std::string& name, char* to) const;

  const std::string path_;
  const std::shared_ptr<const OpenDirectory> directory_;
  std::map<std::string, std::string> info_;
  std::map<std::string, CheckpointFile> files_;
};

}  // namespace tandem::io
