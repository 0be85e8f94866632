// The flags that say what is trained on.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "tandem/data/text_dataset.h"

namespace CLI {
class App;
}  // namespace CLI

namespace train {

/// What happens to pictures while they are trained on; docs/train.md writes each out.
enum class Augment { none, light, standard, strong };

/// What values v, from 0 to 1, become.
enum class Normalize {
  imagenet,  ///< as torchvision's weights want them: mean 0 and deviation 1 over ImageNet, by colour
  mnist,     ///< mean 0 and deviation 1 over MNIST; of grey pictures
  none       ///< v
};

struct DataOptions {
  std::string dir = TANDEM_DEFAULT_DATA_DIR;  ///< MNIST's files, or pictures in folders
  std::string file;                           ///< text, token ids, or a table
  std::string val_file;                       ///< another one that is judged by; empty: a part of `file`
  tandem::data::TextTokens tokens = tandem::data::TextTokens::bytes;  ///< what a language model's file has
  std::optional<std::int64_t> limit;                                  ///< samples that are trained on, at most
  bool shuffle = true;
  std::optional<int> workers;              ///< threads that read
  std::optional<Normalize> normalize;      ///< nothing: as the data has it
  std::optional<double> val_split;         ///< share of the samples that is judged by, where none are apart
  std::optional<std::int64_t> image_size;  ///< of each side that pictures get
  std::optional<std::int64_t> channels;    ///< 3 or 1
  std::optional<Augment> augment;
  bool balance_classes = false;  ///< each class as often as the others
  bool skip_bad_images = false;
  std::set<std::string> of_checkpoint;  ///< flags that are not given but the checkpoint's, such as "data-dir"

  /// Share of the samples that is judged by, where it is a part of them.
  double held_out_share() const { return val_split.value_or(0.1); }
};

/// Adds these flags.
void add_data_flags(CLI::App& app, DataOptions& options);

/// Throws tandem::ConfigError when a flag is given that belongs to pictures in folders; `data`: what there is instead.
void refuse_picture_flags(const DataOptions& options, const std::string& data);

}  // namespace train
