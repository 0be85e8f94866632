#include "ranks.h"

#include <cstdio>
#include <string>

#include <c10/util/Logging.h>

#include "tandem/core/error.h"

namespace train {

tandem::PartialState examine_ranks(const tandem::LaunchConfig& launch) {
  try {
    return tandem::examine(launch);
  } catch (const tandem::ConfigError& error) {
    if (const auto& gpus = launch.gpus)
      throw tandem::ConfigError("--gpus " + std::to_string(*gpus) + ": " + error.what() + " with --cpu N");
    if (!launch.devices.empty()) throw tandem::ConfigError(std::string("--devices: ") + error.what() + " with --cpu N");
    throw;
  }
}

void settle_nodes(Options& options) {
  auto& nodes = options.launch.nodes;
  if (!nodes) nodes = tandem::nodes_from_environment();
  if (!nodes || nodes->nodes == 1) return;
  if (!options.quiet)
    nodes->on_waiting = [seconds = 0](const std::string& text) mutable {
      if (seconds++ % 15 == 0) std::fprintf(stderr, "train: %s\n", text.c_str());
    };
  FLAGS_caffe2_log_level = 2;  // LibTorch tells of each connection that breaks, with its own stack; train says it too
  const auto refuse = [](const char* flag) {
    throw tandem::ConfigError(std::string(flag) + " does not go with several machines; find it out on one first");
  };
  if (options.finds_batch_size) refuse("--batch-size auto");
  if (options.check_exact) refuse("--check-exact");
  if (!options.profile.directory.empty()) refuse("--profile");
}

}  // namespace train
