#pragma once

#include <cstdint>
#include <stop_token>
#include <string>

namespace tandem_tool {

struct CheckpointRequest {
  std::string directory = ".";  ///< in which a directory is made, and removed again
  std::int64_t parameters = 25'000'000;
  int ranks = 2;  ///< on the CPU
  int runs = 3;
  std::stop_token cancel{};
};

/// Medians, in seconds.
struct CheckpointTimes {
  std::uint64_t bytes = 0;  ///< of a checkpoint
  double save = 0;          ///< Accelerator::save_state, on all ranks
  double stop = 0;        ///< how long it stops the ranks in the background, with its memory there from the first time
  double background = 0;  ///< until that one is on the disk
  double load = 0;        ///< Accelerator::load_state
  double write = 0;       ///< writing as many bytes to a file, and waiting until they are on the disk
};

/// Saves and loads a model and the state of its AdamW, each time beside a bare file of the same size in the same
/// directory. Throws tandem::Error.
CheckpointTimes time_checkpoints(const CheckpointRequest& request);

}  // namespace tandem_tool
