#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace train {

/// What of a training would be lost if the process ended now, for the user who wants that. Any thread.
class Unsaved {
 public:
  /// `weights`: the file that they will be written to; empty: none.
  explicit Unsaved(std::string weights) : weights_(std::move(weights)) {}

  /// So many updates were made.
  void made(std::int64_t steps);

  /// A checkpoint of so many updates is at `path`, or is being written there.
  void saving(std::int64_t steps, const std::string& path);

  void wrote_weights();

  /// One line without an end.
  std::string text() const;

 private:
  struct Checkpoint {
    std::int64_t steps;
    std::string path;
  };

  mutable std::mutex mutex_;  // guards all below
  std::int64_t steps_ = 0;
  std::vector<Checkpoint> checkpoints_;
  std::string weights_;  // that are not written yet
};

}  // namespace train
