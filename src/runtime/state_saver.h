// Writes states as checkpoints, in the background if asked.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/snapshot.h"
#include "tandem/io/checkpoint_directory.h"

namespace tandem {

/// Hears how a save has ended.
using SaveWritten = std::function<void(const std::string& directory, const std::exception_ptr& error)>;

/// One at a time. Belongs to rank 0. Destroyed when the last one is written.
class StateSaver {
 public:
  struct Job {
    std::string directory;
    std::vector<io::NewFile> files;
    std::map<std::string, std::string> info;
    bool in_series = false;  ///< one of a series (io/checkpoint_series.h), of which `total_limit` stay
    std::optional<std::int64_t> total_limit;
    /// Hears how a save in the background has ended, on the thread that writes. Empty: `wait` throws what went wrong.
    SaveWritten written{};
  };

  /// Whether one is being written.
  bool busy() const { return busy_; }

  /// Waits until the last one is written. Throws what went wrong with those that told nobody else, once.
  void wait();

  /// The same, but leaves what went wrong for `wait`.
  void settle();

  /// Throws CheckpointError.
  static void write(const Job& job);

  /// The same in the background, after `wait`.
  void start(Job job);

  /// Of what is written in the background.
  Snapshot& snapshot() { return snapshot_; }

 private:
  Snapshot snapshot_;
  std::atomic<bool> busy_{false};
  std::exception_ptr problem_;
  std::future<void> writing_;  // ends first
};

}  // namespace tandem
