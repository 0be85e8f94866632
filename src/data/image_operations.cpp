#include "image_operations.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <ATen/Functions.h>

#include "tandem/core/error.h"

namespace tandem::data {
namespace {

double white_of(const at::Tensor& image) { return image.is_floating_point() ? 1.0 : 255.0; }

// Floating-point [..., 1, height, width]; whole numbers for bytes.
at::Tensor shades_of(const at::Tensor& image) {
  if (image.size(-3) == 1) return image.is_floating_point() ? image : image.to(at::kFloat);
  const auto colors = image.unbind(-3);
  at::Tensor shades = colors[0].mul(0.2989).add_(colors[1], 0.587).add_(colors[2], 0.114).unsqueeze_(-3);
  return image.is_floating_point() ? shades : shades.floor_();
}

at::Tensor blend(const at::Tensor& image, const at::Tensor& other, double share) {
  return image.mul(share).add_(other, 1.0 - share).clamp_(0, white_of(image)).to(image.scalar_type());
}

// One pixel's hue is turned; its lightest and darkest colour stay what they are. The formulas are Pillow's.
void turn_hue(float& red, float& green, float& blue, float turn) {
  const float value = std::max({red, green, blue}), least = std::min({red, green, blue});
  const float range = value - least;
  const float saturation = range == 0 ? 0 : range / value, divisor = range == 0 ? 1 : range;
  const float r = (value - red) / divisor, g = (value - green) / divisor, b = (value - blue) / divisor;
  const float sixths = value == red ? b - g : value == green ? 2 + r - b : 4 + g - r;
  float hue = std::fmod(sixths * static_cast<float>(1.0 / 6.0) + 1, 1.0f) + turn;
  hue -= std::floor(hue);
  const float sector = std::floor(hue * 6), part = hue * 6 - sector;
  const auto shade = [value](float share) { return std::clamp(share * value, 0.0f, 1.0f); };
  const float p = shade(1 - saturation), q = shade(1 - saturation * part),
              t = shade(saturation * part + 1 - saturation);
  switch (static_cast<int>(sector) % 6) {
    case 0: red = value, green = t, blue = p; break;
    case 1: red = q, green = value, blue = p; break;
    case 2: red = p, green = value, blue = t; break;
    case 3: red = p, green = q, blue = value; break;
    case 4: red = t, green = p, blue = value; break;
    default: red = value, green = p, blue = q; break;
  }
}

// As floating-point numbers from 0 to 1, contiguous, for the caller to write to.
at::Tensor floats_of(const at::Tensor& image) {
  const at::Tensor copy = image.to(image.options().dtype(at::kFloat), false, true).contiguous();
  return image.is_floating_point() ? copy : copy.mul(1.0 / 255.0);
}

at::Tensor as_bytes(const at::Tensor& floats) { return floats.mul(256.0 - 1e-3).to(at::kByte); }

// Back from numbers from 0 to 1.
at::Tensor as_type_of(const at::Tensor& image, const at::Tensor& floats) {
  return image.is_floating_point() ? floats.to(image.scalar_type()) : as_bytes(floats);
}

// What each byte of a channel becomes, so that all values are about as frequent. Pillow's rule.
void equalize_bytes(std::uint8_t* values, std::int64_t count) {
  std::array<std::int64_t, 256> frequency{};
  for (std::int64_t i = 0; i < count; ++i) frequency[values[i]] += 1;
  const std::uint8_t most = *std::max_element(values, values + count);
  const std::int64_t step = (count - frequency[most]) / 255;
  if (step == 0) return;
  std::array<std::uint8_t, 256> becomes{};
  std::int64_t below = 0;
  for (std::size_t value = 0; value < 256; ++value) {
    becomes[value] = static_cast<std::uint8_t>(value == 0 ? 0 : std::min<std::int64_t>((below + step / 2) / step, 255));
    below += frequency[value];
  }
  for (std::int64_t i = 0; i < count; ++i) values[i] = becomes[values[i]];
}

// The pixel of 0 .. size - 1 that is shown at `place`, which may be beyond.
std::int64_t mirrored(std::int64_t place, std::int64_t size, transforms::PaddingMode mode) {
  using transforms::PaddingMode;
  if (mode == PaddingMode::edge) return std::clamp<std::int64_t>(place, 0, size - 1);
  const std::int64_t twice = mode == PaddingMode::symmetric ? 1 : 0;
  if (place < 0) return -place - twice;
  return place < size ? place : 2 * (size - 1) + twice - place;
}

at::Tensor pad_by_index(const at::Tensor& image, std::int64_t dim, std::int64_t before, std::int64_t after,
                        transforms::PaddingMode mode) {
  const std::int64_t size = image.size(dim);
  const std::int64_t most = mode == transforms::PaddingMode::reflect     ? size - 1
                            : mode == transforms::PaddingMode::symmetric ? size
                                                                         : std::max(before, after);
  if (before > most || after > most)
    throw DataError("a picture of " + std::to_string(size) + " pixels cannot be mirrored for a padding of " +
                    std::to_string(std::max(before, after)) + "; use at most " + std::to_string(most));
  std::vector<std::int64_t> pixels;
  for (std::int64_t place = -before; place < size + after; ++place) pixels.push_back(mirrored(place, size, mode));
  return image.index_select(dim, at::tensor(pixels, at::kLong));
}

at::Tensor fill_tensor(const std::vector<double>& fill, const at::Tensor& image) {
  if (fill.size() != 1 && static_cast<std::int64_t>(fill.size()) != image.size(-3))
    throw DataError("a fill of " + std::to_string(fill.size()) + " values does not go with a picture of " +
                    std::to_string(image.size(-3)) + " channels; use one, or one a channel");
  return at::tensor(fill, at::kDouble).to(image.scalar_type()).view({-1, 1, 1});
}

// Where each output pixel is taken from, as grid_sampler wants it, [1, height, width, 2]. In torchvision's order of
// operations: of the nearest pixel, a rounding decides.
at::Tensor grid_of(const AffineMap& map, const ImageSize& size, at::ScalarType type) {
  const auto options = at::TensorOptions(type);
  const auto width = static_cast<double>(size.width), height = static_cast<double>(size.height);
  at::Tensor places = at::empty({1, size.height, size.width, 3}, options);
  places.select(3, 0).copy_(at::linspace((1 - width) * 0.5, (width - 1) * 0.5, size.width));
  places.select(3, 1).copy_(at::linspace((1 - height) * 0.5, (height - 1) * 0.5, size.height).unsqueeze_(-1));
  places.select(3, 2).fill_(1);
  const at::Tensor theta = at::tensor({map.a, map.b, map.c, map.d, map.e, map.f}, at::kDouble).to(type).view({1, 2, 3});
  const at::Tensor halves = at::tensor({0.5 * width, 0.5 * height}, at::kDouble).to(type);
  return places.view({1, size.height * size.width, 3})
      .bmm(theta.transpose(1, 2).div(halves))
      .view({1, size.height, size.width, 2});
}

}  // namespace

void check_picture(const std::string& transform, const at::Tensor& image) {
  if (image.dim() < 3 || (image.scalar_type() != at::kByte && !image.is_floating_point()) || image.numel() == 0)
    throw DataError(transform + " is for pictures [..., channels, height, width] of bytes or floating-point numbers, " +
                    "not for " + c10::str(image.scalar_type(), " ", image.sizes()));
}

void check_colors(const std::string& transform, const at::Tensor& image) {
  check_picture(transform, image);
  if (image.size(-3) != 1 && image.size(-3) != 3)
    throw DataError(transform + " is for pictures of 1 or 3 channels, not of " + std::to_string(image.size(-3)));
}

ImageSize size_of(const at::Tensor& image) { return {image.size(-2), image.size(-1)}; }

at::Tensor resize_image(const at::Tensor& image, const ImageSize& size) {
  if (image.size(-2) == size.height && image.size(-1) == size.width) return image;
  const auto resize = [&size](const at::Tensor& batch) {
    return at::_upsample_bilinear2d_aa(batch, {size.height, size.width}, /*align_corners=*/false);
  };
  const bool side_by_side = image.dim() == 3 && image.size(0) > 1 && image.stride(0) == 1;
  // So that its strides are those of a batch of that layout.
  if (side_by_side) return resize(image.permute({1, 2, 0}).contiguous().unsqueeze(0).permute({0, 3, 1, 2})).squeeze(0);
  auto shape = image.sizes().vec();
  const at::Tensor resized = resize(image.reshape({-1, shape[shape.size() - 3], image.size(-2), image.size(-1)}));
  shape[shape.size() - 2] = size.height;
  shape[shape.size() - 1] = size.width;
  return resized.view(shape);
}

at::Tensor pad_image(const at::Tensor& image, const std::array<std::int64_t, 4>& padding, transforms::PaddingMode mode,
                     const std::vector<double>& fill) {
  const auto [left, top, right, bottom] = padding;
  if (mode != transforms::PaddingMode::constant)
    return pad_by_index(pad_by_index(image, -2, top, bottom, mode), -1, left, right, mode);
  auto shape = image.sizes().vec();
  shape[shape.size() - 2] += top + bottom;
  shape[shape.size() - 1] += left + right;
  at::Tensor padded = at::empty(shape, image.options());
  padded.copy_(fill_tensor(fill, image).expand(shape));
  padded.narrow(-2, top, image.size(-2)).narrow(-1, left, image.size(-1)).copy_(image);
  return padded;
}

namespace {

// One picture [channels, height, width] in any layout to planes, a row of all channels at a time: a pixel's bytes often
// lie side by side.
void look_up_picture(const at::Tensor& picture, const float* table, float* to) {
  const std::int64_t channels = picture.size(0), height = picture.size(1), width = picture.size(2);
  const auto* const begin = picture.const_data_ptr<std::uint8_t>();
  const std::int64_t channel_stride = picture.stride(0), stride = picture.stride(2);
  for (std::int64_t y = 0; y < height; ++y) {
    const std::uint8_t* const row = begin + y * picture.stride(1);
    if (channels == 3) {
      const std::uint8_t *red = row, *green = row + channel_stride, *blue = row + 2 * channel_stride;
      float *const r = to + y * width, *const g = r + height * width, *const b = g + height * width;
      for (std::int64_t x = 0; x < width; ++x, red += stride, green += stride, blue += stride) {
        r[x] = table[*red];
        g[x] = table[256 + *green];
        b[x] = table[512 + *blue];
      }
      continue;
    }
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      const std::uint8_t* from = row + channel * channel_stride;
      float* const plane = to + (channel * height + y) * width;
      for (std::int64_t x = 0; x < width; ++x, from += stride) plane[x] = table[channel * 256 + *from];
    }
  }
}

}  // namespace

at::Tensor look_up(const at::Tensor& image, const at::Tensor& table) {
  at::Tensor result = at::empty(image.sizes(), table.options());
  const auto* const values = table.const_data_ptr<float>();
  auto* to = result.mutable_data_ptr<float>();
  if (image.dim() == 3) {
    look_up_picture(image, values, to);
    return result;
  }
  const at::Tensor pictures = image.reshape({-1, image.size(-3), image.size(-2), image.size(-1)});
  for (const at::Tensor& picture : pictures.unbind(0)) {
    look_up_picture(picture, values, to);
    to += picture.numel();
  }
  return result;
}

at::Tensor adjust_brightness(const at::Tensor& image, double factor) {
  return image.mul(factor).clamp_(0, white_of(image)).to(image.scalar_type());
}

at::Tensor adjust_contrast(const at::Tensor& image, double factor) {
  return blend(image, shades_of(image).mean({-3, -2, -1}, true), factor);
}

at::Tensor adjust_saturation(const at::Tensor& image, double factor) {
  return image.size(-3) == 1 ? image : blend(image, shades_of(image), factor);
}

at::Tensor adjust_hue(const at::Tensor& image, double shift) {
  if (image.size(-3) == 1) return image;
  at::Tensor floats = floats_of(image);
  const std::int64_t pixels = image.size(-2) * image.size(-1);
  float* const begin = floats.mutable_data_ptr<float>();
  for (float* of = begin; of != begin + floats.numel(); of += 3 * pixels)
    for (std::int64_t i = 0; i < pixels; ++i)
      turn_hue(of[i], of[pixels + i], of[2 * pixels + i], static_cast<float>(shift));
  return as_type_of(image, floats);
}

at::Tensor adjust_sharpness(const at::Tensor& image, double factor) {
  const std::int64_t channels = image.size(-3), height = image.size(-2), width = image.size(-1);
  if (height <= 2 || width <= 2) return image;
  const at::ScalarType type = image.is_floating_point() ? image.scalar_type() : at::kFloat;
  at::Tensor kernel = at::full({3, 3}, 1.0 / 13.0, at::TensorOptions(type));
  kernel.select(0, 1).select(0, 1).fill_(5.0 / 13.0);
  at::Tensor sharpened = image.reshape({-1, channels, height, width}).to(image.options().dtype(type), false, true);
  at::Tensor blurred = at::conv2d(sharpened, kernel.expand({channels, 1, 3, 3}), std::nullopt, at::IntArrayRef(1),
                                  at::IntArrayRef(0), at::IntArrayRef(1), channels);
  if (!image.is_floating_point()) blurred.round_();
  at::Tensor inner = sharpened.narrow(2, 1, height - 2).narrow(3, 1, width - 2);
  inner.add_(blurred.sub_(inner), 1.0 - factor);
  return sharpened.clamp_(0, white_of(image)).to(image.scalar_type()).view(image.sizes());
}

at::Tensor posterize(const at::Tensor& image, int bits) {
  if (image.is_floating_point()) {
    const double levels = 1 << bits;
    return image.mul(levels).floor_().clamp_(0, levels - 1).mul_(1.0 / levels);
  }
  return bits >= 8 ? image : image.bitwise_and(((1 << bits) - 1) << (8 - bits));
}

at::Tensor solarize(const at::Tensor& image, double threshold) {
  const at::Tensor inverted = image.is_floating_point() ? 1.0 - image : image.bitwise_not();
  return at::where(image.ge(threshold), inverted, image);
}

at::Tensor auto_contrast(const at::Tensor& image) {
  const double white = white_of(image);
  const at::Tensor floats = image.is_floating_point() ? image : image.to(at::kFloat);
  const at::Tensor least = floats.amin({-2, -1}, true), most = floats.amax({-2, -1}, true);
  const at::Tensor flat = most.eq(least);
  return floats.sub(least.masked_fill(flat, 0))
      .div_((most - least).mul_(1.0 / white).masked_fill_(flat, 1))
      .clamp_(0, white)
      .to(image.scalar_type());
}

at::Tensor equalize(const at::Tensor& image) {
  at::Tensor bytes = image.is_floating_point() ? as_bytes(image).contiguous() : image.contiguous().clone();
  const std::int64_t pixels = image.size(-2) * image.size(-1);
  std::uint8_t* const begin = bytes.mutable_data_ptr<std::uint8_t>();
  for (std::uint8_t* of = begin; of != begin + bytes.numel(); of += pixels) equalize_bytes(of, pixels);
  return image.is_floating_point() ? bytes.to(image.scalar_type()).mul_(1.0 / 255.0) : bytes;
}

at::Tensor move_pixels(const at::Tensor& image, const AffineMap& map, transforms::Interpolation interpolation,
                       const std::vector<double>& fill) {
  constexpr int kBilinear = 0, kNearest = 1, kZeros = 0;  // grid_sampler's
  const bool nearest = interpolation == transforms::Interpolation::nearest;
  const at::ScalarType type = image.is_floating_point() ? image.scalar_type() : at::kFloat;
  const auto sample = [&](const at::Tensor& batch) {
    const at::Tensor grid = grid_of(map, size_of(image), type).expand({batch.size(0), -1, -1, -1});
    return at::grid_sampler(batch, grid, nearest ? kNearest : kBilinear, kZeros, /*align_corners=*/false);
  };
  at::Tensor moved = sample(image.reshape({-1, image.size(-3), image.size(-2), image.size(-1)}).to(type));
  if (!fill.empty()) {
    const at::Tensor inside = sample(at::ones({1, 1, image.size(-2), image.size(-1)}, at::TensorOptions(type)));
    const at::Tensor outside = fill_tensor(fill, moved);
    moved = nearest ? at::where(inside.lt(0.5), outside, moved) : moved.sub_(outside).mul_(inside).add_(outside);
  }
  return (image.is_floating_point() ? moved : moved.round_().to(at::kByte)).view(image.sizes());
}

}  // namespace tandem::data
