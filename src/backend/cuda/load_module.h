// Finds Tandem's CUDA module and what it needs on this machine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/module.h"

namespace tandem::cuda {

/// Where to look.
struct Places {
  std::string driver = "libcuda.so.1";  ///< NVIDIA's, a name or a path
  std::vector<std::string> modules{};   ///< paths of the module, the first that exists counts
};

/// Beside the program, in ../lib from there, and where this build of Tandem has put it.
Places usual_places();

/// Loads the driver and the module, which stay loaded. Throws ConfigError that says why no GPU is usable: there is no
/// driver, it is too old, it shows no GPU, there is no module, it is another version's, or it cannot be loaded.
std::shared_ptr<Module> load_module(const Places& places);

}  // namespace tandem::cuda
