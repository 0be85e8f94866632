#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

namespace tandem::data {

/// What an EXIF block (with or without "Exif\0\0" before it) says of how its picture lies, 1 to 8; 1 where it says
/// nothing, or nothing that can be understood.
int exif_orientation(std::span<const std::uint8_t> exif);

/// [channels, height, width] as it is to be looked at, for orientation 1 to 8; a view where it can be one.
at::Tensor turn_upright(const at::Tensor& pixels, int orientation);

}  // namespace tandem::data
