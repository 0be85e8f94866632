#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem::data {

/// The most pixels that an image may claim to have; more is an error before anything is allocated.
inline constexpr std::int64_t kMostPixels = std::int64_t{1} << 28;

/// A picture as it came out of its file.
struct DecodedImage {
  at::Tensor pixels;        ///< uint8 [height, width, channels]
  std::int64_t height = 0;  ///< of the file; `pixels` may be smaller, see decode_image
  std::int64_t width = 0;
  std::string oddity{};  ///< what is wrong beside the pixels, which are whole; empty: nothing
  int orientation = 1;   ///< what EXIF says, 1 to 8, where that was asked for; not yet applied
};

/// How a picture is decoded.
struct DecodeRequest {
  int channels = 3;  ///< 3: red, green, blue; 1: grey
  /// When positive, a JPEG may come out at a half, a quarter or an eighth of its size, as long as neither side becomes
  /// shorter than this: far fewer pixels to decode for a picture that will be made smaller anyway.
  std::int64_t least_side = 0;
  bool orientation = false;  ///< look for EXIF
};

/// Decodes the bytes of a JPEG, PNG or WebP file; which it is, its first bytes tell. `path` is for messages. Throws
/// DataError when it is none, has too many pixels, or not all of them are there and right. Safe to call from many
/// threads.
DecodedImage decode_image(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request);

/// The formats, for decode_image.
DecodedImage decode_jpeg(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request);
DecodedImage decode_png(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request);
DecodedImage decode_webp(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request);

/// Throws DataError when an image claims more than kMostPixels.
void check_image_size(const std::string& path, std::int64_t height, std::int64_t width);

/// uint8 [height, width, 3] to [height, width, 1]: 0.299 red + 0.587 green + 0.114 blue, rounded.
at::Tensor grey_of(const at::Tensor& pixels);

}  // namespace tandem::data
