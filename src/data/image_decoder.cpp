#include "image_decoder.h"

#include <algorithm>
#include <array>

#include <ATen/Functions.h>

#include "tandem/core/error.h"

namespace tandem::data {
namespace {

constexpr std::array<std::uint8_t, 3> kJpegSignature{0xff, 0xd8, 0xff};
constexpr std::array<std::uint8_t, 8> kPngSignature{0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

// What WebP files begin with, but for the four bytes between, their size.
constexpr std::array<std::uint8_t, 4> kRiff{'R', 'I', 'F', 'F'}, kWebp{'W', 'E', 'B', 'P'};

bool is_webp(const std::vector<std::uint8_t>& bytes) {
  return bytes.size() >= 12 && std::equal(kRiff.begin(), kRiff.end(), bytes.begin()) &&
         std::equal(kWebp.begin(), kWebp.end(), bytes.begin() + 8);
}

template <class Signature>
bool begins_with(const std::vector<std::uint8_t>& bytes, const Signature& signature) {
  return bytes.size() >= signature.size() && std::equal(signature.begin(), signature.end(), bytes.begin());
}

}  // namespace

void check_image_size(const std::string& path, std::int64_t height, std::int64_t width) {
  if (height > kMostPixels / width)
    throw DataError(path + ": says that it has " + std::to_string(height) + " x " + std::to_string(width) +
                    " pixels; at most " + std::to_string(kMostPixels) + " are read");
}

at::Tensor grey_of(const at::Tensor& pixels) {
  at::Tensor grey = at::empty({pixels.size(0), pixels.size(1), 1}, at::kByte);
  const std::uint8_t* from = pixels.const_data_ptr<std::uint8_t>();
  std::uint8_t* to = grey.mutable_data_ptr<std::uint8_t>();
  // The weights times 2^16, so that they add up to 2^16: the integers that libjpeg uses.
  for (std::int64_t left = grey.numel(); left > 0; --left, from += 3)
    *to++ = static_cast<std::uint8_t>((from[0] * 19595 + from[1] * 38470 + from[2] * 7471 + 32768) >> 16);
  return grey;
}

DecodedImage decode_image(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request) {
  if (begins_with(bytes, kJpegSignature)) return decode_jpeg(path, bytes, request);
  if (begins_with(bytes, kPngSignature)) return decode_png(path, bytes, request);
  if (is_webp(bytes)) return decode_webp(path, bytes, request);
  throw DataError(path + ": is no JPEG, PNG or WebP file" + (bytes.empty() ? " (it is empty)" : ""));
}

}  // namespace tandem::data
