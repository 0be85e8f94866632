#pragma once

#include <string>

#include "tandem/tandem.h"

namespace train {

/// Says what is worth knowing and does not end the training: once, though all ranks call it.
inline void warn(const tandem::Accelerator& accelerator, const std::string& text) {
  const auto& on_warning = accelerator.state().config.on_warning;
  if (accelerator.is_main() && on_warning) on_warning(text);
}

}  // namespace train
