#include "tandem/data/image_folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include <ATen/Functions.h>

#include "core/word_hash.h"
#include "exif_orientation.h"
#include "image_decoder.h"
#include "image_operations.h"
#include "tandem/core/error.h"
#include "tandem/data/detail/fingerprint.h"
#include "tandem/data/read_image.h"

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
  return ending == ".jpg" || ending == ".jpeg" || ending == ".png" || ending == ".webp";
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

// All below `directory`, which is in the folders `around`.
std::vector<std::string> list_pictures(const fs::path& directory, std::vector<FolderId> around) {
  std::vector<std::pair<std::string, std::string>> found;  // folder and name, the order of torchvision
  const std::size_t above = around.size();
  around.push_back(id_of(directory));
  if (std::find(around.begin(), around.end() - 1, around.back()) != around.end() - 1) throw_loop(directory);
  constexpr auto kFollow = fs::directory_options::follow_directory_symlink;
  for (fs::recursive_directory_iterator entry(directory, kFollow), end; entry != end; ++entry) {
    const fs::path& path = entry->path();
    if (is_hidden(path)) {
      entry.disable_recursion_pending();
    } else if (is_folder(*entry)) {
      around.resize(above + 1 + static_cast<std::size_t>(entry.depth()));  // the entry's folders
      const FolderId id = id_of(path);
      if (std::find(around.begin(), around.end(), id) != around.end()) throw_loop(path);
      around.push_back(id);
    } else if (is_picture(path) && entry->is_regular_file()) {
      found.emplace_back(path.parent_path().string(), path.filename().string());
    }
  }
  if (found.empty())
    throw DataError(directory.string() + ": has no pictures (files that end in .jpg, .jpeg, .png or .webp)");
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

void check_crop(const std::string& file, const ImageSize& whole, const ImageSize& crop) {
  if (crop.height > whole.height || crop.width > whole.width)
    throw DataError(file + ": has " + std::to_string(whole.height) + " x " + std::to_string(whole.width) +
                    " pixels, less than the crop of " + std::to_string(crop.height) + " x " +
                    std::to_string(crop.width) + "; resize first");
}

// A picture that was decoded, the size that it is to have, and what of it is kept.
struct ReadImage {
  DecodedImage image;
  ImageSize whole, crop;
};

ReadImage decode(const std::string& file, const ImageFolderOptions& options, std::int64_t least_side) {
  DecodedImage image = decode_image(file, read_file(file),
                                    {.channels = static_cast<int>(options.channels),
                                     .least_side = least_side,
                                     .orientation = options.exif_orientation});
  if (image.orientation >= 5) std::swap(image.height, image.width);
  const ImageSize whole = resized(options, image);
  if (options.shorter_side) check_image_size(file + " (resized)", whole.height, whole.width);
  const ImageSize crop = options.crop.value_or(whole);
  check_crop(file, whole, crop);
  return {std::move(image), whole, crop};
}

// Calls `of(i)` for each i below `count`, on all cores.
void for_each_index(std::size_t count, const std::function<void(std::size_t)>& of) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) of(i);
  };
  std::vector<std::future<void>> others;
  for (unsigned i = 1; i < std::min<std::size_t>(std::thread::hardware_concurrency(), count); ++i)
    others.push_back(std::async(std::launch::async, work));
  work();
  for (auto& other : others) other.get();
}

at::Tensor centre_of(const at::Tensor& pixels, const ImageSize& crop) {
  const auto before = [](std::int64_t spare) { return std::lrint(static_cast<double>(spare) / 2); };  // torchvision's
  return pixels.narrow(1, before(pixels.size(1) - crop.height), crop.height)
      .narrow(2, before(pixels.size(2) - crop.width), crop.width);
}

// As numbers from 0 to 1, [channels, height, width], in one pass.
at::Tensor unit_of(const at::Tensor& bytes) {
  const at::Tensor values = at::arange(256, at::kFloat).div_(255);
  return look_up(bytes, values.expand({bytes.size(-3), 256}).contiguous());
}

using Warning = std::function<void(const std::string&)>;

// A sample without its label. `warn`, if there is one, hears of an odd file.
at::Tensor sample_of(const std::string& file, const ImageFolderOptions& options, const Warning& warn) {
  std::int64_t least_side = options.shorter_side.value_or(0);
  if (options.resize) least_side = std::max(options.resize->height, options.resize->width);
  const auto [image, whole, crop] = decode(file, options, least_side);
  if (!image.oddity.empty() && warn)
    warn(file + ": its file has no good end (" + image.oddity + "), but all pixels; it is used");
  const at::Tensor upright = turn_upright(image.pixels.permute({2, 0, 1}), image.orientation);
  const at::Tensor pixels = centre_of(resize_image(upright, whole), crop);
  at::Tensor result = options.transform ? options.transform(pixels) : pixels;
  if (!result.defined()) throw DataError(file + ": the transform gave an undefined tensor");
  if (result.scalar_type() != at::kByte) return result;
  return options.values == ImageValues::bytes ? result.contiguous() : unit_of(result);
}

}  // namespace

at::Tensor read_image(const std::string& file, const ImageFolderOptions& options) {
  check_options(options);
  return sample_of(file, options, options.on_warning);
}

std::vector<std::string> list_images(const std::string& directory) {
  try {
    return list_pictures(directory, {});
  } catch (const fs::filesystem_error& error) {
    throw DataError(directory + ": cannot be listed: " + error.code().message());
  }
}

struct ImageFolder::Listing {
  std::vector<std::string> classes;
  std::vector<std::string> paths;
  std::vector<std::int64_t> labels;  // of each path
  std::vector<std::string> left_out;
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
      std::vector<std::string> paths = list_pictures(fs::path(directory) / name, {id_of(directory)});
      listing->labels.resize(listing->labels.size() + paths.size(), &name - listing->classes.data());
      std::move(paths.begin(), paths.end(), std::back_inserter(listing->paths));
    }
  } catch (const fs::filesystem_error& error) {
    throw DataError(error.path1().string() + ": cannot be listed: " + error.code().message());
  }
  if (options_.on_bad == BadPictures::leave_out) leave_out_bad(*listing);
  listing_ = std::move(listing);
}

ImageFolder::ImageFolder(const ImageFolder& listed, ImageFolderOptions options)
    : listing_(listed.listing_), told_(listed.told_), options_(std::move(options)) {
  check_options(options_);
}

void ImageFolder::leave_out_bad(Listing& listing) const {
  constexpr std::int64_t kSmall = 1;  // a JPEG's every block is read, and few pixels made of it
  std::vector<std::string> problems(listing.paths.size());
  for_each_index(problems.size(), [&](std::size_t i) {
    try {
      decode(listing.paths[i], options_, kSmall);
    } catch (const DataError& error) {
      problems[i] = error.what();
    }
  });
  std::size_t kept = 0;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    if (!problems[i].empty()) {
      if (options_.on_warning) options_.on_warning(problems[i] + "; it is left out");
      listing.left_out.push_back(std::move(problems[i]));
      continue;
    }
    std::swap(listing.paths[kept], listing.paths[i]);
    listing.labels[kept++] = listing.labels[i];
  }
  if (kept == 0) throw DataError("no picture can be read; the first: " + listing.left_out.front());
  listing.paths.resize(kept);
  listing.labels.resize(kept);
}

torch::data::Example<> ImageFolder::get(std::size_t index) {
  const auto warn = [&](const std::string& text) {
    const std::lock_guard lock(told_->mutex);
    if (told_->pictures.insert(index).second) options_.on_warning(text);
  };
  at::Tensor image = sample_of(path(index), options_, options_.on_warning ? warn : Warning());
  return {std::move(image), at::scalar_tensor(listing_->labels[index], at::kLong)};
}

std::optional<std::size_t> ImageFolder::size() const { return listing_->paths.size(); }

std::uint64_t ImageFolder::fingerprint() const {
  WordHash hash;
  for (const std::size_t index : detail::some_of(listing_->paths.size())) {
    hash.add(static_cast<std::uint64_t>(listing_->labels[index]));
    for (const char c : fs::path(path(index)).filename().string()) hash.add(static_cast<unsigned char>(c));
    for (const std::uint8_t byte : read_file(path(index))) hash.add(byte);
  }
  return std::max<std::uint64_t>(hash.value(), 1);
}

const std::vector<std::string>& ImageFolder::classes() const { return listing_->classes; }

const std::vector<std::string>& ImageFolder::left_out() const { return listing_->left_out; }

std::int64_t ImageFolder::label(std::size_t index) const {
  path(index);
  return listing_->labels[index];
}

const std::string& ImageFolder::path(std::size_t index) const {
  if (index >= listing_->paths.size())
    throw DataError("picture " + std::to_string(index) + " does not exist; there are " +
                    std::to_string(listing_->paths.size()));
  return listing_->paths[index];
}

}  // namespace tandem::data
