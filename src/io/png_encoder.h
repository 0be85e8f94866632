#pragma once

#include <cstdint>
#include <string>

namespace tandem::io {

/// The bytes of a PNG file of `pixels`, rows from the top, with 1 (grey), 3 or 4 channels of 8 bits. Throws Error when
/// libpng cannot.
std::string encode_png(const std::uint8_t* pixels, std::int64_t height, std::int64_t width, int channels);

}  // namespace tandem::io
