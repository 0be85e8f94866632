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
  std::uint64_t bytes = 0;
  double save = 0, load = 0;  ///< Accelerator::save_model and load_model, on all ranks
  double write = 0;           ///< writing as many bytes to a file, and waiting until they are on the disk
};

/// Saves and loads a model, each time beside a bare file of the same size in the same directory. Throws tandem::Error.
CheckpointTimes time_checkpoints(const CheckpointRequest& request);

}  // namespace tandem_tool
