#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/data/image_size.h"
#include "tandem/data/transforms.h"

/// \file
/// What transforms are made of, by torchvision's rules for tensors. Pictures are [..., channels, height, width], bytes
/// or floating-point from 0 to 1.
namespace tandem::data {

/// Throws DataError, naming `transform`, unless `image` is a picture of bytes or floating-point numbers, of some
/// pixels.
void check_picture(const std::string& transform, const at::Tensor& image);

/// The same, and that it is of 1 or 3 channels.
void check_colors(const std::string& transform, const at::Tensor& image);

/// Height and width.
ImageSize size_of(const at::Tensor& image);

/// Bilinear with antialiasing. A picture whose channels lie side by side stays so.
at::Tensor resize_image(const at::Tensor& image, const ImageSize& size);

/// With pixels around it; throws DataError where the picture is too small to be mirrored that far. Padding is left,
/// top, right, bottom.
at::Tensor pad_image(const at::Tensor& image, const std::array<std::int64_t, 4>& padding, transforms::PaddingMode mode,
                     const std::vector<double>& fill);

/// What `table`, float [channels, 256], has for each byte, in one pass on the calling thread; contiguous.
at::Tensor look_up(const at::Tensor& image, const at::Tensor& table);

at::Tensor adjust_brightness(const at::Tensor& image, double factor);
at::Tensor adjust_contrast(const at::Tensor& image, double factor);
at::Tensor adjust_saturation(const at::Tensor& image, double factor);
at::Tensor adjust_hue(const at::Tensor& image, double shift);
at::Tensor adjust_sharpness(const at::Tensor& image, double factor);
at::Tensor posterize(const at::Tensor& image, int bits);
at::Tensor solarize(const at::Tensor& image, double threshold);
at::Tensor auto_contrast(const at::Tensor& image);
at::Tensor equalize(const at::Tensor& image);

/// How pixels are moved: output pixel (x, y) comes from (a x + b y + c, d x + e y + f), from the picture's centre.
struct AffineMap {
  double a = 1, b = 0, c = 0, d = 0, e = 1, f = 0;
};

/// What is moved in from outside is `fill`, one value or one a channel; none: 0.
at::Tensor move_pixels(const at::Tensor& image, const AffineMap& map, transforms::Interpolation interpolation,
                       const std::vector<double>& fill);

}  // namespace tandem::data
