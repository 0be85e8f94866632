#include "tandem/data/image_folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>
#include <utility>

#include <ATen/Functions.h>

#include "image_decoder.h"
#include "tandem/core/error.h"

namespace tandem::data {
namespace {

namespace fs = std::filesystem;

void check_side(const char* option, std::int64_t side) {
  if (side < 1 || side > kMostPixels)
    throw ConfigError(std::string(option) + " is " + std::to_string(side) + " pixels; use 1 to " +
                      std::to_string(kMostPixels));
}

void check_size(const char* option, const ImageSize& size) {
  check_side(option, size.height);
  check_side(option, size.width);
  if (size.height > kMostPixels / size.width)
    throw ConfigError(std::string(option) + " is more than " + std::to_string(kMostPixels) + " pixels");
}

void check_options(const ImageFolderOptions& options) {
  if (options.shorter_side) check_side("shorter_side", *options.shorter_side);
  if (options.resize) check_size("resize", *options.resize);
  if (options.crop) check_size("crop", *options.crop);
  if (options.resize && options.shorter_side) throw ConfigError("both resize and shorter_side are given; use one");
  if (options.channels != 1 && options.channels != 3)
    throw ConfigError("channels is " + std::to_string(options.channels) + "; use 3 (colour) or 1 (grey)");
}

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

bool is_picture(const fs::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return ending == ".jpg" || ending == ".jpeg" || ending == ".png";
}

// What a folder is, whatever leads to it.
using FolderId = std::pair<dev_t, ino_t>;

FolderId id_of(const fs::path& folder) {
  struct stat status {};
  if (stat(folder.c_str(), &status) != 0)
    throw fs::filesystem_error("", folder, std::error_code(errno, std::generic_category()));
  return {status.st_dev, status.st_ino};
}

// Whether it is a folder or leads to one. What leads nowhere may be a folder that is missed.
bool is_folder(const fs::directory_entry& entry) {
  std::error_code error;
  if (entry.is_symlink() && !entry.exists(error))
    throw DataError(entry.path().string() + ": is a link that leads nowhere (" +
                    (error ? error : std::make_error_code(std::errc::no_such_file_or_directory)).message() +
                    "); mend or remove it");
  return entry.is_directory();
}

std::vector<std::string> list_classes(const fs::path& directory) {
  if (!fs::is_directory(directory))
    throw DataError(directory.string() + (fs::exists(directory) ? ": is no directory" : ": does not exist"));
  std::vector<std::string> classes;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory))
    if (!is_hidden(entry.path()) && is_folder(entry)) classes.push_back(entry.path().filename().string());
  if (classes.empty())
    throw DataError(directory.string() + ": has no sub-directories; it must have one for each class of pictures");
  std::sort(classes.begin(), classes.end());
  return classes;
}

[[noreturn]] void throw_loop(const fs::path& link) {
  throw DataError(link.string() + ": is a link that leads back to a folder that it is in; remove it");
}

std::vector<std::string> list_pictures(const fs::path& directory) {
  std::vector<std::pair<std::string, std::string>> found;  // folder and name, the order of torchvision
  std::vector<FolderId> around{id_of(directory.parent_path()), id_of(directory)};  // the entry
  if (around[0] == around[1]) throw_loop(directory);
  constexpr auto kFollow = fs::directory_options::follow_directory_symlink;
  for (fs::recursive_directory_iterator entry(directory, kFollow), end; entry != end; ++entry) {
    const fs::path& path = entry->path();
    if (is_hidden(path)) {
      entry.disable_recursion_pending();
    } else if (is_folder(*entry)) {
      around.resize(static_cast<std::size_t>(entry.depth()) + 2);
      const FolderId id = id_of(path);
      if (std::find(around.begin(), around.end(), id) != around.end()) throw_loop(path);
      around.push_back(id);
    } else if (is_picture(path) && entry->is_regular_file()) {
      found.emplace_back(path.parent_path().string(), path.filename().string());
    }
  }
  if (found.empty()) throw DataError(directory.string() + ": has no pictures (files that end in .jpg, .jpeg or .png)");
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (const auto& [folder, name] : found) paths.push_back((fs::path(folder) / name).string());
  return paths;
}

std::vector<std::uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (size < 0) throw DataError(path + ": cannot be opened");
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), size)) throw DataError(path + ": cannot be read");
  return bytes;
}

// The size after resizing. Multiplied before divided and rounded down, as torchvision does.
ImageSize resized(const ImageFolderOptions& options, const DecodedImage& image) {
  if (options.resize) return *options.resize;
  if (!options.shorter_side) return {image.height, image.width};
  const std::int64_t side = *options.shorter_side;
  if (image.height <= image.width) return {side, side * image.width / image.height};
  return {side * image.height / image.width, side};
}

at::Tensor resize_pixels(const at::Tensor& pixels, const ImageSize& size) {
  if (pixels.size(0) == size.height && pixels.size(1) == size.width) return pixels;
  const at::Tensor batch = pixels.permute({2, 0, 1}).unsqueeze(0);
  return at::_upsample_bilinear2d_aa(batch, {size.height, size.width}, /*align_corners=*/false)
      .squeeze(0)
      .permute({1, 2, 0})
      .contiguous();
}

// Rows, columns and channels of the crop from [height, width, channels] into [channels, height, width], each value by
// `convert`. One pass on the calling thread: tensor operations would each start threads of their own under the
// loaders'.
template <class Value, class Convert>
at::Tensor crop_to_planes(const at::Tensor& pixels, const ImageSize& crop, Convert convert) {
  const std::int64_t channels = pixels.size(2), stride = pixels.size(1) * channels;
  const auto centre = [](std::int64_t spare) { return std::lrint(static_cast<double>(spare) / 2); };  // torchvision's
  const std::uint8_t* corner = pixels.const_data_ptr<std::uint8_t>() + centre(pixels.size(0) - crop.height) * stride +
                               centre(pixels.size(1) - crop.width) * channels;
  at::Tensor planes = at::empty({channels, crop.height, crop.width}, c10::CppTypeToScalarType<Value>::value);
  Value* to = planes.mutable_data_ptr<Value>();
  for (std::int64_t channel = 0; channel < channels; ++channel)
    for (std::int64_t y = 0; y < crop.height; ++y) {
      const std::uint8_t* from = corner + y * stride + channel;
      for (std::int64_t x = 0; x < crop.width; ++x, from += channels) *to++ = convert(*from);
    }
  return planes;
}

}  // namespace

struct ImageFolder::Listing {
  std::vector<std::string> classes;
  std::vector<std::string> paths;
  std::vector<std::int64_t> labels;  // of each path
};

// Of which pictures somebody has been told.
struct ImageFolder::Told {
  std::mutex mutex;
  std::set<std::size_t> pictures;
};

ImageFolder::ImageFolder(const std::string& directory, ImageFolderOptions options)
    : told_(std::make_shared<Told>()), options_(std::move(options)) {
  check_options(options_);
  auto listing = std::make_shared<Listing>();
  try {
    listing->classes = list_classes(directory);
    for (const std::string& name : listing->classes) {
      std::vector<std::string> paths = list_pictures(fs::path(directory) / name);
      listing->labels.resize(listing->labels.size() + paths.size(), &name - listing->classes.data());
      std::move(paths.begin(), paths.end(), std::back_inserter(listing->paths));
    }
  } catch (const fs::filesystem_error& error) {
    throw DataError(error.path1().string() + ": cannot be listed: " + error.code().message());
  }
  listing_ = std::move(listing);
}

torch::data::Example<> ImageFolder::get(std::size_t index) {
  const std::string& file = path(index);
  std::int64_t least_side = options_.shorter_side.value_or(0);
  if (options_.resize) least_side = std::max(options_.resize->height, options_.resize->width);
  const DecodedImage image =
      decode_image(file, read_file(file), {.channels = static_cast<int>(options_.channels), .least_side = least_side});
  if (!image.oddity.empty() && options_.on_warning) {
    const std::lock_guard lock(told_->mutex);
    if (told_->pictures.insert(index).second)
      options_.on_warning(file + ": its file has no good end (" + image.oddity + "), but all pixels; it is used");
  }
  const ImageSize whole = resized(options_, image);
  if (options_.shorter_side) check_image_size(file + " (resized)", whole.height, whole.width);
  const ImageSize crop = options_.crop.value_or(whole);
  if (crop.height > whole.height || crop.width > whole.width)
    throw DataError(file + ": has " + std::to_string(whole.height) + " x " + std::to_string(whole.width) +
                    " pixels, less than the crop of " + std::to_string(crop.height) + " x " +
                    std::to_string(crop.width) + "; resize first");
  const at::Tensor pixels = resize_pixels(image.pixels, whole);
  const at::Tensor label = at::scalar_tensor(listing_->labels[index], at::kLong);
  if (options_.values == ImageValues::bytes)
    return {crop_to_planes<std::uint8_t>(pixels, crop, [](std::uint8_t v) { return v; }), label};
  return {crop_to_planes<float>(pixels, crop, [](std::uint8_t v) { return static_cast<float>(v) / 255.0f; }), label};
}

std::optional<std::size_t> ImageFolder::size() const { return listing_->paths.size(); }

const std::vector<std::string>& ImageFolder::classes() const { return listing_->classes; }

const std::string& ImageFolder::path(std::size_t index) const {
  if (index >= listing_->paths.size())
    throw DataError("picture " + std::to_string(index) + " does not exist; there are " +
                    std::to_string(listing_->paths.size()));
  return listing_->paths[index];
}

}  // namespace tandem::data
