#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/data/example.h>

#include "tandem/data/image_size.h"

/// \file
/// What happens to pictures, and to batches of them, on their way into a training: torchvision's transforms v2 on
/// tensors, with their names, options, draws and results.
///
/// A picture is a tensor [..., channels, height, width] on the CPU: bytes, 0 to 255, or floating-point, 0 to 1 (what is
/// normalised already may have any values where a transform only moves pixels). One transform gives it on to the next
/// as it is, or as a new tensor; none writes to the one it was given.
///
/// All draw from the calling thread's default generator, which in a loader depends on seed, epoch and sample only (see
/// DataLoader): a sample is changed alike on any number of ranks and workers, and after resuming. A transform that has
/// something to draw does it in `make_params`, and `transform` applies it: who calls these has the numbers, and can
/// apply them again, to a mask for example. After torch::manual_seed the numbers are torchvision's after the same.
///
///     namespace transforms = tandem::data::transforms;
///     ImageFolder train("photos/train", {.transform = transforms::Compose({
///                           transforms::RandomResizedCrop({224, 224}), transforms::RandomHorizontalFlip(),
///                           transforms::Normalize({0.485, 0.456, 0.406}, {0.229, 0.224, 0.225})})});
///
/// They may be called from several threads at once. Constructors throw ConfigError for options out of range, calls
/// DataError for pictures that a transform is not for.
namespace tandem::data::transforms {

/// From a picture to a picture.
using Transform = std::function<at::Tensor(const at::Tensor& image)>;

/// An interval.
struct Range {
  double least = 0;  ///< where it begins
  double most = 0;   ///< where it ends
};

/// How pixels between pixels are made.
enum class Interpolation {
  nearest,  ///< the nearest one
  bilinear  ///< a mean of the four around
};

/// Transforms one after another.
class Compose {
 public:
  /// In this order. Throws ConfigError when one is empty.
  explicit Compose(std::vector<Transform> transforms);

  /// The picture after all of them.
  at::Tensor operator()(at::Tensor image) const;

 private:
  std::vector<Transform> transforms_;
};

/// Options of RandomResizedCrop.
struct RandomResizedCropOptions {
  Range scale = {0.08, 1.0};             ///< the part's area, of the picture's
  Range ratio = {3.0 / 4.0, 4.0 / 3.0};  ///< its width by its height
};

/// A random part of the picture, resized: bilinear, with antialiasing.
class RandomResizedCrop {
 public:
  /// The part, in pixels.
  struct Params {
    std::int64_t top;     ///< its first row
    std::int64_t left;    ///< its first column
    std::int64_t height;  ///< rows
    std::int64_t width;   ///< columns
  };

  /// To this size.
  explicit RandomResizedCrop(ImageSize size, RandomResizedCropOptions options = {});

  Params make_params(const ImageSize& image) const;                           ///< draws a part of such a picture
  at::Tensor transform(const at::Tensor& image, const Params& params) const;  ///< cuts it out and resizes it
  at::Tensor operator()(const at::Tensor& image) const;                       ///< draws and applies
  const ImageSize& size() const { return size_; }                             ///< of the results

 private:
  ImageSize size_;
  RandomResizedCropOptions options_;
  Range log_ratio_;
};

/// What is beyond the picture's edge.
enum class PaddingMode {
  constant,  ///< `fill`
  edge,      ///< the nearest pixel
  reflect,   ///< the picture mirrored, its outermost pixels once: 3 2 | 1 2 3
  symmetric  ///< the picture mirrored, its outermost pixels twice: 2 1 | 1 2 3
};

/// Options of RandomCrop.
struct RandomCropOptions {
  std::vector<std::int64_t> padding = {};  ///< pixels: of all sides; left and top; left, top, right, bottom
  bool pad_if_needed = false;              ///< pad what is smaller than the crop, on both sides by the difference
  std::vector<double> fill = {0};          ///< in the pixels' units, one value or one a channel
  PaddingMode padding_mode = PaddingMode::constant;  ///< what is beyond the edge
};

/// A random part of a given size, of the picture with padding around.
class RandomCrop {
 public:
  /// The padding, and the part of the padded picture, in pixels.
  struct Params {
    std::int64_t top;                     ///< the part's first row, of the padded picture
    std::int64_t left;                    ///< its first column
    std::array<std::int64_t, 4> padding;  ///< left, top, right, bottom
  };

  /// Of this size.
  explicit RandomCrop(ImageSize size, RandomCropOptions options = {});

  Params make_params(const ImageSize& image) const;  ///< draws; throws DataError where the padded picture is smaller
  at::Tensor transform(const at::Tensor& image, const Params& params) const;  ///< pads and cuts
  at::Tensor operator()(const at::Tensor& image) const;                       ///< draws and applies

 private:
  ImageSize size_;
  RandomCropOptions options_;
};

/// Left and right exchanged, with a probability.
class RandomHorizontalFlip {
 public:
  /// With probability `p`.
  explicit RandomHorizontalFlip(double p = 0.5);

  bool make_params() const;                                        ///< draws whether
  at::Tensor transform(const at::Tensor& image, bool flip) const;  ///< flips or does not
  at::Tensor operator()(const at::Tensor& image) const;            ///< draws and applies

 private:
  double p_;
};

/// How much ColorJitter changes: factors are drawn from 1 - x to 1 + x (not below 0), the hue's shift from -x to x
/// turns of the circle, or from the range given. Nothing: not at all.
struct ColorJitterOptions {
  /// One number x, or a range.
  struct Amount {
    Amount() = default;                                          ///< not at all
    Amount(double x) : around(x) {}                              ///< around no change
    Amount(double least, double most) : range({least, most}) {}  ///< a range of its own
    std::optional<double> around;                                ///< around no change
    std::optional<Range> range;                                  ///< a range of its own
  };

  Amount brightness = {};  ///< factor of all values
  Amount contrast = {};    ///< factor of the distance to the picture's mean grey
  Amount saturation = {};  ///< factor of the distance to each pixel's grey
  Amount hue = {};         ///< shift, at most 0.5
};

/// Brightness, contrast, saturation and hue changed at random, in a random order.
class ColorJitter {
 public:
  /// What was drawn. A number that is missing changes nothing.
  struct Params {
    std::array<std::int64_t, 4> order;        ///< of 0 brightness, 1 contrast, 2 saturation, 3 hue
    std::optional<double> brightness_factor;  ///< of the values
    std::optional<double> contrast_factor;    ///< of the distance to the mean grey
    std::optional<double> saturation_factor;  ///< of the distance to each pixel's grey
    std::optional<double> hue_factor;         ///< turns of the circle
  };

  /// By so much.
  explicit ColorJitter(const ColorJitterOptions& options);

  Params make_params() const;                                                 ///< draws
  at::Tensor transform(const at::Tensor& image, const Params& params) const;  ///< applies; of 1 or 3 channels
  at::Tensor operator()(const at::Tensor& image) const;                       ///< draws and applies

 private:
  std::array<std::optional<Range>, 4> ranges_;
};

/// Options of RandomErasing.
struct RandomErasingOptions {
  double p = 0.5;                   ///< probability
  Range scale = {0.02, 0.33};       ///< the rectangle's area, of the picture's
  Range ratio = {0.3, 3.3};         ///< its height by its width
  std::vector<double> value = {0};  ///< in the pixels' units, one or one a channel; none: normally distributed
};

/// A random rectangle overwritten, with a probability.
class RandomErasing {
 public:
  /// The rectangle and what it gets.
  struct Params {
    std::int64_t top = 0;     ///< its first row
    std::int64_t left = 0;    ///< its first column
    std::int64_t height = 0;  ///< rows
    std::int64_t width = 0;   ///< columns
    at::Tensor value = {};    ///< [channels, 1, 1] or [channels, height, width]; undefined: nothing is erased
  };

  /// With these options.
  explicit RandomErasing(RandomErasingOptions options = {});

  Params make_params(const at::Tensor& image) const;  ///< draws whether and where, for a picture of this shape
  at::Tensor transform(const at::Tensor& image, const Params& params) const;  ///< erases
  at::Tensor operator()(const at::Tensor& image) const;                       ///< draws and applies

 private:
  RandomErasingOptions options_;
  Range log_ratio_;
};

/// (v - mean) / std by channel, float. A picture of bytes counts as v / 255 first (torchvision's ToDtype with scale).
class Normalize {
 public:
  /// One number a channel. Throws ConfigError when they are none or not as many, or a deviation is not positive.
  Normalize(std::vector<double> mean, std::vector<double> std);

  at::Tensor operator()(const at::Tensor& image) const;  ///< a new, contiguous picture

 private:
  std::vector<double> mean_, std_;
};

/// Options of TrivialAugmentWide.
struct TrivialAugmentOptions {
  std::int64_t num_magnitude_bins = 31;                  ///< strengths of each operation
  Interpolation interpolation = Interpolation::nearest;  ///< of what is sheared, moved or turned
  std::vector<double> fill = {};                         ///< what comes in from outside; one or one a channel; none: 0
};

/// One operation of fourteen at random, with a random strength.
class TrivialAugmentWide {
 public:
  /// What is done.
  enum class Operation {
    identity,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
    brightness,
    color,
    contrast,
    sharpness,
    posterize,
    solarize,
    auto_contrast,
    equalize
  };

  /// An operation and its strength, in units of its own.
  struct Params {
    Operation operation;  ///< which
    double magnitude;     ///< how much, as torchvision counts it
  };

  /// With these options.
  explicit TrivialAugmentWide(TrivialAugmentOptions options = {});

  Params make_params() const;                                                 ///< draws
  at::Tensor transform(const at::Tensor& image, const Params& params) const;  ///< applies; of 1 or 3 channels
  at::Tensor operator()(const at::Tensor& image) const;                       ///< draws and applies

 private:
  TrivialAugmentOptions options_;
};

/// Options of MixUp and CutMix.
struct MixOptions {
  double alpha = 1.0;            ///< of the Beta distribution that the share is drawn from
  std::int64_t num_classes = 0;  ///< classes, where targets are labels; not needed where they are probabilities
};

/// Each sample of a batch a mean of itself and the one before it, its target likewise. Draws once a batch. As a
/// loader's collation it makes the batch first:
///
///     DataLoader(pictures, options).with_collate(transforms::MixUp({.alpha = 0.2, .num_classes = 1000}))
///
/// A batch is {floating-point [B, channels, height, width], labels int64 [B] or probabilities [B, classes]}; its target
/// becomes float [B, classes], which LibTorch's cross_entropy takes.
class MixUp {
 public:
  /// With these options.
  explicit MixUp(MixOptions options);

  double make_params() const;  ///< draws the share of the sample itself
  torch::data::Example<> transform(const torch::data::Example<>& batch, double share) const;  ///< mixes
  torch::data::Example<> operator()(const torch::data::Example<>& batch) const;               ///< draws and mixes
  torch::data::Example<> operator()(std::vector<torch::data::Example<>> samples) const;       ///< stacks them first

 private:
  MixOptions options_;
};

/// A rectangle of each sample of a batch replaced by that of the one before it; targets are mixed by area. Used as
/// MixUp is; pictures may be bytes.
class CutMix {
 public:
  /// The rectangle, in pixels.
  struct Params {
    std::int64_t left;    ///< its first column
    std::int64_t top;     ///< its first row
    std::int64_t right;   ///< the column after its last
    std::int64_t bottom;  ///< the row after its last
    double share;         ///< of the picture that is outside it
  };

  /// With these options.
  explicit CutMix(MixOptions options);

  Params make_params(const ImageSize& image) const;                                                   ///< draws
  torch::data::Example<> transform(const torch::data::Example<>& batch, const Params& params) const;  ///< mixes
  torch::data::Example<> operator()(const torch::data::Example<>& batch) const;          ///< draws and mixes
  torch::data::Example<> operator()(std::vector<torch::data::Example<>> samples) const;  ///< stacks them first

 private:
  MixOptions options_;
};

}  // namespace tandem::data::transforms
