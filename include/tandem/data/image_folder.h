#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

#include "tandem/data/image_size.h"

namespace tandem::data {

/// What a pixel value v in 0 .. 255 becomes.
enum class ImageValues {
  unit,  ///< v / 255, float32
  bytes  ///< v, uint8: a quarter of the memory; divide on the device
};

/// What becomes of a picture that cannot be read.
enum class BadPictures {
  error,     ///< an error when it is read
  leave_out  ///< all pictures are decoded once when the folder is listed, and those that cannot be are left out
};

/// What happens to a picture, in this order. Without resizing and cropping it keeps its size.
struct ImageFolderOptions {
  bool exif_orientation = false;  ///< turn it as its EXIF says that it is to be looked at; the sizes below are then
  /// Resize so that the shorter side has this many pixels and the shape is kept; the longer side is rounded down.
  std::optional<std::int64_t> shorter_side = {};
  std::optional<ImageSize> resize = {};  ///< resize to exactly this; not together with shorter_side
  std::optional<ImageSize> crop = {};    ///< keep this much of the centre
  std::int64_t channels = 3;             ///< 3: red, green, blue; 1: grey
  /// Then called with the picture, uint8 [channels, height, width], such as transforms::Compose; what it gives is the
  /// sample. It may draw from the default generators, and is called from several threads at once.
  std::function<at::Tensor(const at::Tensor&)> transform = {};
  ImageValues values = ImageValues::unit;  ///< what pixels become that are bytes yet
  /// With leave_out the samples are the same, and equally many, on any number of ranks and workers; a picture that goes
  /// bad later is an error. Decoding takes all cores about as long as a pass over the pictures.
  BadPictures on_bad = BadPictures::error;
  /// Hears of each picture, once, that was read though its file is odd: all pixels are there, but it has no good end.
  /// Also of each that was left out, when the folder is listed. Called on the thread that reads it, one call at a time.
  /// Nothing: nobody hears of it.
  std::function<void(const std::string&)> on_warning = {};
};

/// A directory of pictures with one sub-directory a class: the class's name is the sub-directory's, labels number the
/// names in sorted order from 0. A class's pictures are all files below its directory that end in .jpg, .jpeg, .png or
/// .webp (in any case), sorted by folder and name, as torchvision's ImageFolder has them; other files are passed over,
/// and so are files and folders whose name begins with a dot. Links are followed, to pictures and to folders.
///
///     ImageFolder pictures("imagenet/val", {.shorter_side = 256, .crop = ImageSize{224, 224}});
///
/// A sample is {float32 or uint8 [channels, height, width], or what `transform` makes of it, int64 label []}; a picture
/// is read and decoded each time,
/// and nothing is kept. Any number of threads may call `get` at once. Copies share the list of files.
///
/// Greyscale, palette, 16-bit and CMYK pictures become what `channels` says; alpha, colour profiles and gamma are
/// ignored, and so is the orientation in EXIF, unless it is asked for. Resizing is bilinear with antialiasing, as in
/// torchvision; a JPEG that becomes smaller by half or more is decoded at a half, quarter or eighth of its size first
/// (Pillow's `draft`).
class ImageFolder : public torch::data::datasets::Dataset<ImageFolder, torch::data::Example<>> {
 public:
  /// Lists the files. Throws DataError naming the directory when it is missing or has no classes, or a class has no
  /// pictures; one that names the link that leads back to a folder that it is in, or nowhere; ConfigError for sizes
  /// that are not positive and for channels other than 1 and 3; with leave_out a DataError when no picture can be read.
  explicit ImageFolder(const std::string& directory, ImageFolderOptions options = {});

  /// The pictures of `listed`, which is not listed again, with other options: as for validation, which crops otherwise.
  /// Throws ConfigError for options as above; `on_bad` is that of `listed`.
  ImageFolder(const ImageFolder& listed, ImageFolderOptions options);

  /// Reads picture `index`. Throws DataError naming the file when it cannot be read, is no JPEG, PNG or WebP (its
  /// contents count, not its name), has pixels that are missing or damaged, claims more than 2^28 pixels or is smaller
  /// than the crop; and when there is no such index.
  torch::data::Example<> get(std::size_t index) override;

  /// How many pictures there are.
  std::optional<std::size_t> size() const override;

  /// Of the files and labels of some pictures: see HasFingerprint. Throws DataError when one cannot be read.
  std::uint64_t fingerprint() const;

  /// The names of the classes; a label is a position in it.
  const std::vector<std::string>& classes() const;

  /// The class of a picture. Throws DataError when there is no such index.
  std::int64_t label(std::size_t index) const;

  /// Why each picture was left out, a sentence that begins with its file.
  const std::vector<std::string>& left_out() const;

  /// The file of a picture. Throws DataError when there is no such index.
  const std::string& path(std::size_t index) const;

 private:
  struct Listing;
  struct Told;

  void leave_out_bad(Listing& listing) const;

  std::shared_ptr<const Listing> listing_;
  std::shared_ptr<Told> told_;  // of odd pictures
  ImageFolderOptions options_;
};

}  // namespace tandem::data
