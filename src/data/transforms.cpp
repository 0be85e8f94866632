#include "tandem/data/transforms.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include <ATen/Functions.h>

#include "image_operations.h"
#include "tandem/core/error.h"
#include "tandem/data/batch.h"

namespace tandem::data::transforms {
namespace {

using torch::data::Example;

constexpr int kTries = 10;  // to draw a rectangle that fits

void check(bool right, const std::string& problem) {
  if (!right) throw ConfigError(problem);
}

// Also false for NaN.
bool is_between(double value, double least, double most) { return value >= least && value <= most; }

void check_probability(const std::string& transform, double p) {
  check(is_between(p, 0, 1), transform + ": p is " + std::to_string(p) + "; use 0 to 1");
}

void check_range(const std::string& name, const Range& range, double least, double most) {
  check(is_between(range.least, least, most) && is_between(range.most, range.least, most),
        name + " is " + std::to_string(range.least) + " to " + std::to_string(range.most) +
            "; use numbers in order, from " + std::to_string(least) + " to " + std::to_string(most));
}

constexpr double kWidest = 1e6;  // ratio of a rectangle's sides

void check_size(const std::string& transform, const ImageSize& size) {
  check(size.height > 0 && size.width > 0, transform + ": the size is " + std::to_string(size.height) + " x " +
                                               std::to_string(size.width) + " pixels; use positive numbers");
}

bool draw_whether(double p) { return at::rand({1}).item<float>() < p; }

double draw_between(const Range& range) { return at::empty({1}).uniform_(range.least, range.most).item<float>(); }

std::int64_t draw_below(std::int64_t end) { return at::randint(end, {1}).item<std::int64_t>(); }

std::int64_t rounded(double value) { return std::llrint(value); }  // a half to the even side, as Python does

// With the roundings of single precision that torchvision's has.
Range log_of(const Range& range) {
  const at::Tensor logs = at::tensor({range.least, range.most}, at::kFloat).log();
  return {logs[0].item<float>(), logs[1].item<float>()};
}

double draw_ratio(const Range& log_ratio) {
  return at::empty({1}).uniform_(log_ratio.least, log_ratio.most).exp().item<float>();
}

const std::vector<double>& checked_fill(const std::string& transform, const std::vector<double>& fill) {
  check(std::all_of(fill.begin(), fill.end(), [](double value) { return std::isfinite(value); }),
        transform + ": a fill value is no number");
  return fill;
}

}  // namespace

Compose::Compose(std::vector<Transform> transforms) : transforms_(std::move(transforms)) {
  for (const Transform& transform : transforms_) check(static_cast<bool>(transform), "Compose: a transform is empty");
}

at::Tensor Compose::operator()(at::Tensor image) const {
  for (const Transform& transform : transforms_) image = transform(image);
  return image;
}

RandomResizedCrop::RandomResizedCrop(ImageSize size, RandomResizedCropOptions options)
    : size_(size), options_(options) {
  check_size("RandomResizedCrop", size_);
  check_range("RandomResizedCrop: scale", options_.scale, 0, 1);
  check_range("RandomResizedCrop: ratio", options_.ratio, 1 / kWidest, kWidest);
  log_ratio_ = log_of(options_.ratio);
}

RandomResizedCrop::Params RandomResizedCrop::make_params(const ImageSize& image) const {
  const auto height = static_cast<double>(image.height), width = static_cast<double>(image.width);
  for (int i = 0; i < kTries; ++i) {
    const double area = height * width * draw_between(options_.scale), ratio = draw_ratio(log_ratio_);
    const std::int64_t w = rounded(std::sqrt(area * ratio)), h = rounded(std::sqrt(area / ratio));
    if (w <= 0 || w > image.width || h <= 0 || h > image.height) continue;
    const std::int64_t top = draw_below(image.height - h + 1), left = draw_below(image.width - w + 1);
    return {top, left, h, w};
  }
  Params centre{0, 0, image.height, image.width};
  if (width / height < options_.ratio.least)
    centre.height = std::max<std::int64_t>(rounded(width / options_.ratio.least), 1);
  else if (width / height > options_.ratio.most)
    centre.width = std::max<std::int64_t>(rounded(height * options_.ratio.most), 1);
  centre.top = (image.height - centre.height) / 2;
  centre.left = (image.width - centre.width) / 2;
  return centre;
}

at::Tensor RandomResizedCrop::transform(const at::Tensor& image, const Params& params) const {
  check_picture("RandomResizedCrop", image);
  return resize_image(image.narrow(-2, params.top, params.height).narrow(-1, params.left, params.width), size_);
}

at::Tensor RandomResizedCrop::operator()(const at::Tensor& image) const {
  check_picture("RandomResizedCrop", image);
  return transform(image, make_params(size_of(image)));
}

RandomCrop::RandomCrop(ImageSize size, RandomCropOptions options) : size_(size), options_(std::move(options)) {
  check_size("RandomCrop", size_);
  std::vector<std::int64_t>& sides = options_.padding;
  check(sides.size() <= 2 || sides.size() == 4,
        "RandomCrop: padding has " + std::to_string(sides.size()) + " numbers; use 1, 2 or 4");
  check(std::all_of(sides.begin(), sides.end(), [](std::int64_t side) { return is_between(double(side), 0, kWidest); }),
        "RandomCrop: padding is negative or more than a million pixels");
  if (sides.empty()) sides = {0};
  if (sides.size() == 1) sides.push_back(sides[0]);
  if (sides.size() == 2) sides.insert(sides.end(), {sides[0], sides[1]});
  check(!checked_fill("RandomCrop", options_.fill).empty(), "RandomCrop: fill has no value");
}

RandomCrop::Params RandomCrop::make_params(const ImageSize& image) const {
  const std::vector<std::int64_t>& sides = options_.padding;
  Params params{0, 0, {sides[0], sides[1], sides[2], sides[3]}};
  auto& [left, top, right, bottom] = params.padding;
  if (options_.pad_if_needed) {
    const std::int64_t rows = std::max<std::int64_t>(size_.height - image.height - top - bottom, 0);
    const std::int64_t columns = std::max<std::int64_t>(size_.width - image.width - left - right, 0);
    top += rows, bottom += rows, left += columns, right += columns;
  }
  const std::int64_t height = image.height + top + bottom, width = image.width + left + right;
  if (height < size_.height || width < size_.width)
    throw DataError("RandomCrop: a picture of " + std::to_string(height) + " x " + std::to_string(width) +
                    " pixels, with its padding, is smaller than the crop of " + std::to_string(size_.height) + " x " +
                    std::to_string(size_.width));
  if (height > size_.height) params.top = draw_below(height - size_.height + 1);
  if (width > size_.width) params.left = draw_below(width - size_.width + 1);
  return params;
}

at::Tensor RandomCrop::transform(const at::Tensor& image, const Params& params) const {
  check_picture("RandomCrop", image);
  const bool padded = params.padding != std::array<std::int64_t, 4>{};
  const at::Tensor whole = padded ? pad_image(image, params.padding, options_.padding_mode, options_.fill) : image;
  return whole.narrow(-2, params.top, size_.height).narrow(-1, params.left, size_.width);
}

at::Tensor RandomCrop::operator()(const at::Tensor& image) const {
  check_picture("RandomCrop", image);
  return transform(image, make_params(size_of(image)));
}

RandomHorizontalFlip::RandomHorizontalFlip(double p) : p_(p) { check_probability("RandomHorizontalFlip", p); }

bool RandomHorizontalFlip::make_params() const { return draw_whether(p_); }

at::Tensor RandomHorizontalFlip::transform(const at::Tensor& image, bool flip) const {
  return flip ? image.flip(-1) : image;
}

at::Tensor RandomHorizontalFlip::operator()(const at::Tensor& image) const { return transform(image, make_params()); }

ColorJitter::ColorJitter(const ColorJitterOptions& options) {
  const auto range_of = [](const char* name, const ColorJitterOptions::Amount& amount, double centre,
                           const Range& most) {
    std::optional<Range> range = amount.range;
    const std::string text = std::string("ColorJitter: ") + name;
    if (amount.around) {
      check(*amount.around >= 0, text + " is " + std::to_string(*amount.around) + "; use 0 or more");
      range = Range{centre - *amount.around, centre + *amount.around};
      if (centre > 0) range->least = std::max(range->least, 0.0);
    }
    if (range) check_range(text, *range, most.least, most.most);
    return range && range->least == centre && range->most == centre ? std::nullopt : range;
  };
  constexpr Range kFactor{0, 1e9}, kShift{-0.5, 0.5};
  ranges_ = {range_of("brightness", options.brightness, 1, kFactor), range_of("contrast", options.contrast, 1, kFactor),
             range_of("saturation", options.saturation, 1, kFactor), range_of("hue", options.hue, 0, kShift)};
}

ColorJitter::Params ColorJitter::make_params() const {
  Params params{};
  const at::Tensor order = at::randperm(4);
  std::copy_n(order.const_data_ptr<std::int64_t>(), 4, params.order.begin());
  const auto draw = [](const std::optional<Range>& range) {
    return range ? std::optional(draw_between(*range)) : std::nullopt;
  };
  params.brightness_factor = draw(ranges_[0]);
  params.contrast_factor = draw(ranges_[1]);
  params.saturation_factor = draw(ranges_[2]);
  params.hue_factor = draw(ranges_[3]);
  return params;
}

at::Tensor ColorJitter::transform(const at::Tensor& image, const Params& params) const {
  check_colors("ColorJitter", image);
  at::Tensor changed = image;
  for (const std::int64_t which : params.order) {
    if (which == 0 && params.brightness_factor) changed = adjust_brightness(changed, *params.brightness_factor);
    if (which == 1 && params.contrast_factor) changed = adjust_contrast(changed, *params.contrast_factor);
    if (which == 2 && params.saturation_factor) changed = adjust_saturation(changed, *params.saturation_factor);
    if (which == 3 && params.hue_factor) changed = adjust_hue(changed, *params.hue_factor);
  }
  return changed;
}

at::Tensor ColorJitter::operator()(const at::Tensor& image) const { return transform(image, make_params()); }

RandomErasing::RandomErasing(RandomErasingOptions options) : options_(std::move(options)) {
  check_probability("RandomErasing", options_.p);
  check_range("RandomErasing: scale", options_.scale, 0, 1);
  check_range("RandomErasing: ratio", options_.ratio, 1 / kWidest, kWidest);
  checked_fill("RandomErasing", options_.value);
  log_ratio_ = log_of(options_.ratio);
}

RandomErasing::Params RandomErasing::make_params(const at::Tensor& image) const {
  if (!draw_whether(options_.p)) return {};
  const auto [height, width] = size_of(image);
  const std::int64_t channels = image.size(-3);
  const auto values = static_cast<std::int64_t>(options_.value.size());
  if (values > 1 && values != channels)
    throw DataError("RandomErasing: " + std::to_string(values) + " values do not go with a picture of " +
                    std::to_string(channels) + " channels; use one, or one a channel");
  for (int i = 0; i < kTries; ++i) {
    const double area = static_cast<double>(height * width) * draw_between(options_.scale);
    const double ratio = draw_ratio(log_ratio_);
    const std::int64_t h = rounded(std::sqrt(area * ratio)), w = rounded(std::sqrt(area / ratio));
    if (h >= height || w >= width) continue;
    const at::Tensor value =
        values == 0 ? at::randn({channels, h, w}) : at::tensor(options_.value, at::kFloat).view({-1, 1, 1});
    const std::int64_t top = draw_below(height - h + 1), left = draw_below(width - w + 1);
    return {top, left, h, w, value};
  }
  return {};
}

at::Tensor RandomErasing::transform(const at::Tensor& image, const Params& params) const {
  if (!params.value.defined()) return image;
  at::Tensor erased = image.clone();
  erased.narrow(-2, params.top, params.height)
      .narrow(-1, params.left, params.width)
      .copy_(params.value.expand({image.size(-3), params.height, params.width}));
  return erased;
}

at::Tensor RandomErasing::operator()(const at::Tensor& image) const {
  check_picture("RandomErasing", image);
  return transform(image, make_params(image));
}

Normalize::Normalize(std::vector<double> mean, std::vector<double> std) : mean_(std::move(mean)), std_(std::move(std)) {
  check(!mean_.empty() && mean_.size() == std_.size(), "Normalize: " + std::to_string(mean_.size()) + " means and " +
                                                           std::to_string(std_.size()) +
                                                           " deviations; use one of each a channel");
  for (std::size_t i = 0; i < std_.size(); ++i)
    check(std::isfinite(mean_[i]) && std::isfinite(std_[i]) && std_[i] > 0,
          "Normalize: mean " + std::to_string(mean_[i]) + " and deviation " + std::to_string(std_[i]) +
              " cannot be used; use numbers, and a deviation above 0");
}

at::Tensor Normalize::operator()(const at::Tensor& image) const {
  check_picture("Normalize", image);
  const auto channels = static_cast<std::int64_t>(mean_.size());
  if (image.size(-3) != channels)
    throw DataError("Normalize: a picture of " + std::to_string(image.size(-3)) + " channels, and numbers for " +
                    std::to_string(channels));
  const at::ScalarType type = image.is_floating_point() ? image.scalar_type() : at::kFloat;
  const at::Tensor mean = at::tensor(mean_, at::kDouble).to(type).view({-1, 1, 1});
  const at::Tensor std = at::tensor(std_, at::kDouble).to(type).view({-1, 1, 1});
  if (image.is_floating_point()) return image.sub(mean).div_(std).contiguous();
  const at::Tensor values = at::arange(256, at::kFloat).mul_(1.0 / 255.0).expand({channels, 1, 256});
  return look_up(image, values.sub(mean).div_(std).view({channels, 256}));
}

TrivialAugmentWide::TrivialAugmentWide(TrivialAugmentOptions options) : options_(std::move(options)) {
  check(options_.num_magnitude_bins >= 2 && options_.num_magnitude_bins <= 1'000'000,
        "TrivialAugmentWide: num_magnitude_bins is " + std::to_string(options_.num_magnitude_bins) +
            "; use 2 to a million");
  checked_fill("TrivialAugmentWide", options_.fill);
}

namespace {

using Operation = TrivialAugmentWide::Operation;

constexpr std::int64_t kOperations = static_cast<std::int64_t>(Operation::equalize) + 1;

// The strengths of an operation, in single precision as torchvision's; undefined: it has none.
at::Tensor magnitudes_of(Operation operation, std::int64_t bins) {
  using enum Operation;
  switch (operation) {
    case identity:
    case auto_contrast:
    case equalize: return {};
    case translate_x:
    case translate_y: return at::linspace(0.0, 32.0, bins);
    case rotate: return at::linspace(0.0, 135.0, bins);
    case posterize: return (8 - at::arange(bins, at::kLong) / (static_cast<double>(bins - 1) / 6)).round();
    case solarize: return at::linspace(1.0, 0.0, bins);
    default: return at::linspace(0.0, 0.99, bins);
  }
}

bool has_sign(Operation operation) { return operation > Operation::identity && operation < Operation::posterize; }

// The way back of a turn, a shear and a shift around `centre`, by torchvision's formulas step by step: which pixel is
// the nearest may depend on the last bit.
struct Affine {
  double centre_x = 0, centre_y = 0, degrees = 0, shift_x = 0, shift_y = 0, shear_x = 0, shear_y = 0;  // in degrees

  AffineMap inverse() const {
    constexpr double kRadians = std::numbers::pi / 180;
    const double turn = degrees * kRadians, sx = shear_x * kRadians, sy = shear_y * kRadians;
    const double x = centre_x + shift_x, y = centre_y + shift_y;
    const double a = std::cos(turn - sy) / std::cos(sy), c = std::sin(turn - sy) / std::cos(sy);
    const double b = -(a * std::tan(sx) + std::sin(turn)), d = std::cos(turn) - c * std::tan(sx);
    AffineMap map{.a = d, .b = -b, .c = 0, .d = -c, .e = a, .f = 0};
    map.c += centre_x - map.a * x - map.b * y;
    map.f += centre_y - map.d * x - map.e * y;
    return map;
  }
};

// Around the upper left corner, by so many pixels a pixel.
Affine shear_of(const at::Tensor& image, double along_x, double along_y) {
  const auto degrees = [](double tangent) { return std::atan(tangent) * (180 / std::numbers::pi); };
  return {.centre_x = -0.5 * static_cast<double>(image.size(-1)),
          .centre_y = -0.5 * static_cast<double>(image.size(-2)),
          .shear_x = degrees(along_x),
          .shear_y = degrees(along_y)};
}

}  // namespace

TrivialAugmentWide::Params TrivialAugmentWide::make_params() const {
  Params params{static_cast<Operation>(at::randint(kOperations, {}).item<std::int64_t>()), 0};
  const at::Tensor magnitudes = magnitudes_of(params.operation, options_.num_magnitude_bins);
  if (!magnitudes.defined()) return params;
  params.magnitude = magnitudes[at::randint(options_.num_magnitude_bins, {}).item<std::int64_t>()].item<float>();
  if (has_sign(params.operation) && at::rand({}).item<float>() <= 0.5) params.magnitude *= -1;
  return params;
}

at::Tensor TrivialAugmentWide::transform(const at::Tensor& image, const Params& params) const {
  using enum Operation;
  check_colors("TrivialAugmentWide", image);
  const double by = params.magnitude;
  const auto move = [&](const Affine& affine) {
    return move_pixels(image, affine.inverse(), options_.interpolation, options_.fill);
  };
  switch (params.operation) {
    case identity: return image;
    case shear_x: return move(shear_of(image, by, 0));
    case shear_y: return move(shear_of(image, 0, by));
    case translate_x: return move({.shift_x = std::trunc(by)});
    case translate_y: return move({.shift_y = std::trunc(by)});
    case rotate: return by == 0 ? image : move({.degrees = -(by < 0 ? by + 360 : by)});
    case brightness: return adjust_brightness(image, 1 + by);
    case color: return adjust_saturation(image, 1 + by);
    case contrast: return adjust_contrast(image, 1 + by);
    case sharpness: return adjust_sharpness(image, 1 + by);
    case posterize: return data::posterize(image, static_cast<int>(by));
    case solarize: return data::solarize(image, by * (image.is_floating_point() ? 1 : 255));
    case auto_contrast: return data::auto_contrast(image);
    case equalize: return data::equalize(image);
  }
  throw ConfigError("TrivialAugmentWide: there is no such operation");
}

at::Tensor TrivialAugmentWide::operator()(const at::Tensor& image) const { return transform(image, make_params()); }

namespace {

MixOptions checked(const std::string& transform, const MixOptions& options) {
  check(std::isfinite(options.alpha) && options.alpha > 0,
        transform + ": alpha is " + std::to_string(options.alpha) + "; use a number above 0");
  check(options.num_classes >= 0,
        transform + ": num_classes is " + std::to_string(options.num_classes) + "; use 0 or more");
  return options;
}

// From the Beta distribution with both parameters alpha.
double draw_share(double alpha) { return at::_sample_dirichlet(at::full({1, 2}, alpha))[0][0].item<float>(); }

at::Tensor mix_targets(const at::Tensor& targets, double share, std::int64_t classes) {
  at::Tensor probabilities = targets;
  if (targets.dim() == 1) {
    const auto [least, most] = targets.aminmax();
    if (least.item<std::int64_t>() < 0 || most.item<std::int64_t>() >= classes)
      throw DataError("a batch has labels from " + std::to_string(least.item<std::int64_t>()) + " to " +
                      std::to_string(most.item<std::int64_t>()) + ", and num_classes is " + std::to_string(classes));
    probabilities = at::one_hot(targets, classes);
  }
  if (!probabilities.is_floating_point()) probabilities = probabilities.to(at::kFloat);
  return probabilities.roll(1, 0).mul_(1.0 - share).add_(probabilities.mul(share));
}

void check_batch(const std::string& transform, const Example<>& batch) {
  const at::Tensor &images = batch.data, &targets = batch.target;
  if (!images.defined() || !targets.defined() || images.dim() != 4 || targets.dim() < 1 || targets.dim() > 2 ||
      images.size(0) != targets.size(0) || images.numel() == 0 ||
      (targets.dim() == 1 && targets.scalar_type() != at::kLong))
    throw DataError(
        transform + " is for batches of pictures [B, channels, height, width] with labels int64 [B] or " +
        "probabilities [B, classes]" +
        (images.defined() && targets.defined()
             ? ", not for " + c10::str(images.sizes(), " with ", targets.scalar_type(), " ", targets.sizes())
             : ""));
}

}  // namespace

MixUp::MixUp(MixOptions options) : options_(checked("MixUp", options)) {}

double MixUp::make_params() const { return draw_share(options_.alpha); }

Example<> MixUp::transform(const Example<>& batch, double share) const {
  check_batch("MixUp", batch);
  if (!batch.data.is_floating_point())
    throw DataError("MixUp is for pictures of floating-point numbers, not of bytes; normalise them first");
  const at::Tensor mixed = batch.data.roll(1, 0).mul_(1.0 - share).add_(batch.data.mul(share));
  return {mixed, mix_targets(batch.target, share, options_.num_classes)};
}

Example<> MixUp::operator()(const Example<>& batch) const { return transform(batch, make_params()); }

Example<> MixUp::operator()(std::vector<Example<>> samples) const { return (*this)(data::stack(std::move(samples))); }

CutMix::CutMix(MixOptions options) : options_(checked("CutMix", options)) {}

CutMix::Params CutMix::make_params(const ImageSize& image) const {
  const double half = 0.5 * std::sqrt(1.0 - draw_share(options_.alpha));
  const std::int64_t x = draw_below(image.width), y = draw_below(image.height);
  const auto half_width = static_cast<std::int64_t>(half * static_cast<double>(image.width));
  const auto half_height = static_cast<std::int64_t>(half * static_cast<double>(image.height));
  Params params{std::max<std::int64_t>(x - half_width, 0), std::max<std::int64_t>(y - half_height, 0),
                std::min(x + half_width, image.width), std::min(y + half_height, image.height), 1};
  const auto inside = static_cast<double>((params.right - params.left) * (params.bottom - params.top));
  params.share = 1.0 - inside / static_cast<double>(image.width * image.height);
  return params;
}

Example<> CutMix::transform(const Example<>& batch, const Params& params) const {
  check_batch("CutMix", batch);
  at::Tensor mixed = batch.data.clone();
  const auto part = [&params](const at::Tensor& images) {
    return images.slice(-2, params.top, params.bottom).slice(-1, params.left, params.right);
  };
  part(mixed).copy_(part(batch.data).roll(1, 0));
  return {mixed, mix_targets(batch.target, params.share, options_.num_classes)};
}

Example<> CutMix::operator()(const Example<>& batch) const {
  check_batch("CutMix", batch);
  return transform(batch, make_params(size_of(batch.data)));
}

Example<> CutMix::operator()(std::vector<Example<>> samples) const { return (*this)(data::stack(std::move(samples))); }

}  // namespace tandem::data::transforms
