// Writes states as checkpoints, in the background if asked.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/snapshot.h"
#include "tandem/checkpoint/checkpoint_options.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/io/checkpoint_series.h"

namespace tandem {

/// One at a time. Belongs to rank 0. Destroyed when the last one is written.
class StateSaver {
 public:
  struct Job {
    std::string directory;
    std::vector<io::NewFile> files;
    std::map<std::string, std::string> info;
    std::shared_ptr<io::CheckpointSeries> series;  ///< that it is one of, of which `total_limit` stay; may be null
    std::optional<std::int64_t> total_limit;
    SaveWritten written{};  ///< of a save in the background; empty: `wait` throws what went wrong
  };

  /// Whether one is being written.
  bool busy() const { return busy_; }

  /// Waits until the last one is written. Throws what went wrong with those that told nobody else, once.
  void wait();

  /// Waits until the last one is written, and leaves what went wrong for `wait`.
  void settle();

  /// Throws CheckpointError.
  static void write(const Job& job);

  /// Writes `job` in the background, after `wait`.
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
