#include "exif_orientation.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace tandem::data {
namespace {

// A TIFF file, numbers in either order of bytes. What is beyond its end is 0.
class Tiff {
 public:
  explicit Tiff(std::span<const std::uint8_t> bytes) : bytes_(bytes), little_(!bytes.empty() && bytes[0] == 'I') {}

  std::uint32_t number(std::size_t at, std::size_t size) const {
    if (at > bytes_.size() || size > bytes_.size() - at) return 0;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < size; ++i) value = value << 8 | bytes_[at + (little_ ? size - 1 - i : i)];
    return value;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  bool little_;
};

}  // namespace

int exif_orientation(std::span<const std::uint8_t> exif) {
  constexpr std::array<std::uint8_t, 6> kName{'E', 'x', 'i', 'f', 0, 0};
  constexpr std::size_t kEntry = 12;
  constexpr std::uint32_t kOrientation = 0x112, kShort = 3, kMagic = 42;
  if (exif.size() >= kName.size() && std::equal(kName.begin(), kName.end(), exif.begin()))
    exif = exif.subspan(kName.size());
  const Tiff tiff(exif);
  if (tiff.number(2, 2) != kMagic) return 1;
  const std::size_t directory = tiff.number(4, 4);
  const std::uint32_t entries = tiff.number(directory, 2);
  for (std::uint32_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + i * kEntry;
    if (tiff.number(entry, 2) != kOrientation) continue;
    const std::uint32_t orientation = tiff.number(entry + 8, 2);
    const bool known = tiff.number(entry + 2, 2) == kShort && orientation >= 1 && orientation <= 8;
    return known ? static_cast<int>(orientation) : 1;
  }
  return 1;
}

at::Tensor turn_upright(const at::Tensor& pixels, int orientation) {
  const at::Tensor turned = orientation >= 5 ? pixels.transpose(1, 2) : pixels;
  switch (orientation) {
    case 2:
    case 6: return turned.flip(2);
    case 3:
    case 7: return turned.flip({1, 2});
    case 4:
    case 8: return turned.flip(1);
    default: return turned;
  }
}

}  // namespace tandem::data
