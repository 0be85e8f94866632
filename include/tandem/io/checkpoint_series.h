#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

/// \file
/// Checkpoints of one training in one directory: `checkpoint_0`, `checkpoint_1` and so on, and a link `latest` to the
/// newest. Other files there are left alone.
namespace tandem::io {

/// Paths of the checkpoints in `directory`, the oldest first; none when there is no such directory.
std::vector<std::string> list_checkpoints(const std::string& directory);

/// Writes checkpoints into one directory, where it is alone: of all processes, and in each, one at a time does so. (A
/// lock on `.tandem-lock` there keeps the others out, and ends with the process however that ends. Where a file system
/// has no locks nobody is refused; a number is then taken by making its directory, and only what the series itself has
/// written is removed.) No number is given twice, and no checkpoint that is there is replaced. Belongs to one thread at
/// a time.
class CheckpointSeries {
 public:
  /// Begins in `directory`, which is made if need be. Throws CheckpointError that names the process which writes there,
  /// and since when.
  explicit CheckpointSeries(std::string directory);
  ~CheckpointSeries();
  CheckpointSeries(const CheckpointSeries&) = delete;
  CheckpointSeries& operator=(const CheckpointSeries&) = delete;

  /// Path of the checkpoint that follows those in the directory. Throws CheckpointError.
  std::string next();

  /// Has `latest` lead to `checkpoint`, a path that `next` gave, and removes the oldest ones beyond `total_limit` (at
  /// least 1) of those that were there when this series began and that it has finished. Throws CheckpointError.
  void finish(const std::string& checkpoint, std::optional<std::int64_t> total_limit);

 private:
  void lock();
  [[noreturn]] void refuse(int lock) const;
  bool is_locked() const { return lock_ >= 0; }

  const std::string directory_, lock_file_;
  int lock_ = -1;              // open while it is held
  std::set<std::string> own_;  // names of those that may be removed
};

}  // namespace tandem::io
