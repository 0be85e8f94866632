#include <algorithm>
#include <cstring>
#include <string>

#include <webp/decode.h>

#include <ATen/Functions.h>

#include "exif_orientation.h"
#include "image_decoder.h"
#include "tandem/core/error.h"

namespace tandem::data {
namespace {

// The bytes of a chunk of a WebP file, or none.
std::span<const std::uint8_t> find_chunk(const std::vector<std::uint8_t>& bytes, const char* name) {
  constexpr std::size_t kHead = 12, kChunkHead = 8;
  for (std::size_t at = kHead; at + kChunkHead <= bytes.size();) {
    std::size_t size = 0;
    for (std::size_t i = 0; i < 4; ++i) size |= std::size_t{bytes[at + 4 + i]} << 8 * i;
    if (size > bytes.size() - at - kChunkHead) break;
    if (std::memcmp(&bytes[at], name, 4) == 0) return std::span(bytes).subspan(at + kChunkHead, size);
    at += kChunkHead + size + size % 2;
  }
  return {};
}

}  // namespace

DecodedImage decode_webp(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request) {
  WebPBitstreamFeatures features;
  const auto throw_damaged = [&path] { throw DataError(path + ": is a damaged WebP file, or one that is cut off"); };
  if (WebPGetFeatures(bytes.data(), bytes.size(), &features) != VP8_STATUS_OK) throw_damaged();
  if (features.has_animation) throw DataError(path + ": is an animated WebP file, which cannot be read");
  DecodedImage image{.pixels = {}, .height = features.height, .width = features.width};
  check_image_size(path, image.height, image.width);
  image.pixels = at::empty({image.height, image.width, 3}, at::kByte);
  if (!WebPDecodeRGBInto(bytes.data(), bytes.size(), image.pixels.mutable_data_ptr<std::uint8_t>(),
                         static_cast<std::size_t>(image.pixels.numel()), features.width * 3))
    throw_damaged();
  if (request.orientation) image.orientation = exif_orientation(find_chunk(bytes, "EXIF"));
  if (request.channels == 1) image.pixels = grey_of(image.pixels);
  return image;
}

}  // namespace tandem::data
