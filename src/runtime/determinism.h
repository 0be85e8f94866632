// What exact mode asks of LibTorch.
#pragma once

#include <memory>

#include "tandem/runtime/launch_config.h"

namespace tandem {

/// While one of an exact launch is alive, LibTorch computes by deterministic algorithms, in the whole process: it has
/// one switch for that. The last one sets back what was before.
class Determinism {
 public:
  /// Throws ConfigError when a launch runs in the process that wants it otherwise.
  explicit Determinism(const LaunchConfig& config);
  ~Determinism();
  Determinism(const Determinism&) = delete;
  Determinism& operator=(const Determinism&) = delete;

 private:
  const bool exact_;
};

}  // namespace tandem
