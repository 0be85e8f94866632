#include "picture_folders.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <numeric>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randperm.h>

#include "fingerprint.h"
#include "tandem/core/error.h"

namespace train {
namespace {

namespace fs = std::filesystem;
using tandem::data::ImageFolder;

constexpr double kValSplit = 0.1;

bool has_folders(const fs::path& directory) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error))
    if (!entry.path().filename().string().starts_with('.') && entry.is_directory(error)) return true;
  return false;
}

bool has_mnist(const fs::path& directory) {
  std::error_code error;
  for (const char* name :
       {"train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"})
    if (fs::exists(directory / name, error) || fs::exists(directory / (name + std::string(".gz")), error)) return true;
  return false;
}

// What is left of each class when bad pictures are left out.
void check_has_all_classes(const ImageFolder& folder) {
  std::vector<bool> has(folder.classes().size());
  for (std::size_t i = 0; i < *folder.size(); ++i) has[static_cast<std::size_t>(folder.label(i))] = true;
  const auto empty = std::find(has.begin(), has.end(), false);
  if (empty == has.end()) return;
  throw tandem::ConfigError("--data-dir: of the class '" +
                            folder.classes()[static_cast<std::size_t>(empty - has.begin())] +
                            "' no picture can be read; the first that cannot: " + folder.left_out().front());
}

// As it is listed once; how pictures are made is for later.
ImageFolder list(const fs::path& directory, const DataOptions& options) {
  tandem::data::ImageFolderOptions listing{.exif_orientation = true};
  if (options.skip_bad_images) listing.on_bad = tandem::data::BadPictures::leave_out;
  try {
    ImageFolder folder(directory.string(), listing);
    check_has_all_classes(folder);
    return folder;
  } catch (const tandem::DataError& error) {
    throw tandem::ConfigError(std::string("--data-dir: ") + error.what());
  }
}

std::vector<std::size_t> all_of(const ImageFolder& folder) {
  std::vector<std::size_t> pictures(*folder.size());
  std::iota(pictures.begin(), pictures.end(), 0);
  return pictures;
}

std::vector<std::int64_t> own_labels(const ImageFolder& folder) {
  std::vector<std::int64_t> labels(folder.classes().size());
  std::iota(labels.begin(), labels.end(), 0);
  return labels;
}

// Classes of the validation by their names in training, where one may be missing in either.
std::vector<std::int64_t> labels_by_name(const fs::path& directory, const std::vector<std::string>& names,
                                         const std::vector<std::string>& classes) {
  std::vector<std::int64_t> labels;
  for (const std::string& name : names) {
    const auto found = std::find(classes.begin(), classes.end(), name);
    if (found == classes.end())
      throw tandem::ConfigError("--data-dir: " + (directory / name).string() + " is a class that is not in " +
                                "the folder that is trained on" + "; a network cannot know it");
    labels.push_back(found - classes.begin());
  }
  return labels;
}

// The samples of each class in an order that the seed draws.
std::vector<std::vector<std::size_t>> shuffled_by_class(const PictureSet& set, std::uint64_t seed) {
  std::vector<std::vector<std::size_t>> of_class(set.labels.size());
  for (const std::size_t picture : set.pictures)
    of_class[static_cast<std::size_t>(set.folder.label(picture))].push_back(picture);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (auto& pictures : of_class) {
    const at::Tensor order = at::randperm(static_cast<std::int64_t>(pictures.size()), generator, at::kLong);
    std::vector<std::size_t> shuffled;
    for (std::int64_t i = 0; i < order.numel(); ++i)
      shuffled.push_back(pictures[static_cast<std::size_t>(order.const_data_ptr<std::int64_t>()[i])]);
    pictures = std::move(shuffled);
  }
  return of_class;
}

// Moves `share` of each class from `set`, of a class of two or more at least one picture, and leaves one at least.
std::vector<std::size_t> take_share(PictureSet& set, double share, std::uint64_t seed) {
  std::vector<std::size_t> kept, taken;
  for (const auto& pictures : shuffled_by_class(set, seed)) {
    const auto count = static_cast<std::int64_t>(pictures.size());
    const auto wanted = std::max<std::int64_t>(std::llround(share * static_cast<double>(count)), 1);
    const auto first = pictures.begin() + std::max<std::int64_t>(std::min(wanted, count - 1), 0);
    taken.insert(taken.end(), pictures.begin(), first);
    kept.insert(kept.end(), first, pictures.end());
  }
  std::sort(kept.begin(), kept.end());
  std::sort(taken.begin(), taken.end());
  set.pictures = std::move(kept);
  return taken;
}

// Keeps `limit` pictures, of the classes in turn, so that few are of all classes.
void keep_some(PictureSet& set, std::size_t limit, std::uint64_t seed) {
  if (limit >= set.pictures.size()) return;
  const auto of_class = shuffled_by_class(set, seed);
  std::vector<std::size_t> kept;
  for (std::size_t i = 0; kept.size() < limit; ++i)
    for (const auto& pictures : of_class)
      if (i < pictures.size() && kept.size() < limit) kept.push_back(pictures[i]);
  std::sort(kept.begin(), kept.end());
  set.pictures = std::move(kept);
}

// The folder of `root` that is called so, in any case; empty: there is none.
fs::path find(const fs::path& root, const std::string& name) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(root, error)) {
    std::string its = entry.path().filename().string();
    std::transform(its.begin(), its.end(), its.begin(), [](unsigned char c) { return std::tolower(c); });
    if (its == name && entry.is_directory(error)) return entry.path();
  }
  return {};
}

// What is judged by beside the pictures that are trained on, by the names that people give it; empty: nothing.
fs::path find_val(const fs::path& root) {
  for (const char* name : {"val", "valid", "validation", "test"}) {
    const fs::path val = find(root, name);
    if (val.empty()) continue;
    if (!has_folders(val))
      throw tandem::ConfigError("--data-dir: " + val.string() +
                                " has no folders of classes, though there is a folder to train on beside it; put some "
                                "there, or remove it");
    return val;
  }
  return {};
}

PictureSets list_in_two(const fs::path& train, const fs::path& val, const DataOptions& options) {
  if (options.val_split)
    throw tandem::ConfigError("--val-split does not go with " + val.string() + ", whose pictures are judged by");
  const ImageFolder trained = list(train, options), judged = list(val, options);
  return {.train = {trained, all_of(trained), own_labels(trained)},
          .val = {judged, all_of(judged), labels_by_name(val, judged.classes(), trained.classes())},
          .classes = trained.classes()};
}

PictureSets list_in_one(const fs::path& directory, const Options& options) {
  const ImageFolder folder = list(directory, options.data);
  PictureSet train{folder, all_of(folder), own_labels(folder)};
  PictureSet val = train;
  val.pictures = take_share(train, options.data.val_split.value_or(kValSplit), options.launch.seed);
  if (val.pictures.empty())
    throw tandem::ConfigError("--data-dir " + directory.string() +
                              ": no class has two pictures, one to train on and one to judge by");
  return {.train = std::move(train), .val = std::move(val), .classes = folder.classes()};
}

std::string data_of(const PictureSets& sets) {
  Fingerprint fingerprint;
  for (const PictureSet* set : {&sets.train, &sets.val}) {
    for (const std::size_t picture : set->pictures)
      fingerprint.add(
          sets.classes[static_cast<std::size_t>(set->labels[static_cast<std::size_t>(set->folder.label(picture))])] +
          '/' + fs::path(set->folder.path(picture)).filename().string());
    fingerprint.add("judged");
  }
  return std::to_string(sets.train.pictures.size()) + " pictures to train on and " +
         std::to_string(sets.val.pictures.size()) + " to judge by (fingerprint " + fingerprint.text() + ")";
}

}  // namespace

DataIn recognise(const std::string& directory) {
  std::error_code error;
  if (has_mnist(directory) || !fs::is_directory(directory, error)) return DataIn::mnist;
  if (has_folders(directory)) return DataIn::pictures;
  throw tandem::ConfigError("--data-dir " + directory +
                            ": has neither folders of pictures, one for each class or train/ and val/ with such, nor "
                            "the four files of MNIST");
}

std::int64_t PictureSet::label(std::size_t sample) const {
  return labels[static_cast<std::size_t>(folder.label(pictures[sample]))];
}

PictureSets list_pictures(const Options& options) {
  const fs::path root = options.data.dir;
  // A class may be called so too.
  const fs::path train = find(root, "train");
  const bool has_train = !train.empty() && has_folders(train);  // otherwise it is a class
  const fs::path val = has_train ? find_val(root) : fs::path();
  PictureSets sets =
      val.empty() ? list_in_one(has_train ? train : root, options) : list_in_two(train, val, options.data);
  if (sets.classes.size() < 2)
    throw tandem::ConfigError("--data-dir " + root.string() + ": has pictures of one class only, '" +
                              sets.classes.front() + "'; put those of each class into a folder of their own");
  sets.data = data_of(sets);
  if (options.data.limit) keep_some(sets.train, static_cast<std::size_t>(*options.data.limit), options.launch.seed);
  return sets;
}

std::vector<std::string> left_out(const PictureSets& sets) {
  std::vector<std::string> all;
  const auto add = [&](const ImageFolder& folder) {
    for (const std::string& why : folder.left_out())
      if (std::find(all.begin(), all.end(), why) == all.end()) all.push_back(why);
  };
  add(sets.train.folder);
  add(sets.val.folder);
  return all;
}

}  // namespace train
