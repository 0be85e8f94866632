// Pictures in folders: which there are, and which of them are trained on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "options.h"
#include "tandem/data/image_folder.h"

namespace train {

/// What lies in --data-dir.
enum class DataIn { mnist, pictures };

/// Looks. What does not exist counts as MNIST. Throws tandem::ConfigError where there is neither.
DataIn recognise(const std::string& directory);

/// Some of the pictures of a folder, with the labels that a network is trained with.
struct PictureSet {
  tandem::data::ImageFolder folder;
  std::vector<std::size_t> pictures;  ///< by sample
  std::vector<std::int64_t> labels;   ///< by class of the folder

  std::int64_t label(std::size_t sample) const;
};

/// Those that are trained on, and those that the network is judged by.
struct PictureSets {
  PictureSet train, val;
  std::vector<std::string> classes;
  std::string data{};  ///< how many there are, and a fingerprint of their names and of who is judged by
};

/// Lists what --data-dir names: train/ and val/ with a folder a class, or such folders alone, of which --val-split goes
/// to the validation, of each class as many as of the others, drawn from the seed. Throws tandem::ConfigError.
PictureSets list_pictures(const Options& options);

/// What of the pictures was left out, for people.
std::vector<std::string> left_out(const PictureSets& sets);

}  // namespace train
