#pragma once

#include <cstdint>

namespace tandem::data {

/// A size in pixels.
struct ImageSize {
  std::int64_t height = 0;  ///< of the picture
  std::int64_t width = 0;   ///< of the picture
};

}  // namespace tandem::data
