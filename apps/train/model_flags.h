// The flags that say which network is trained: `train` and `tandem estimate` have them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "options.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace train {

/// What --model and the flags of the models' sizes say.
struct ModelFlags {
  std::string model = "mlp";
  std::vector<std::int64_t> hidden = {512, 512};     // widths of the mlp's hidden layers
  std::int64_t block_size = 128;                     // of the gpt and of gpt2
  std::optional<std::int64_t> layers, width, heads;  // without them, as the model has them
  std::optional<std::int64_t> vocabulary;
  std::optional<double> dropout;
  bool checkpoint = false;  // activations
};

/// Adds these flags, and returns that of --model.
CLI::Option* add_model_flags(CLI::App& app, ModelFlags& flags);

/// What they say, as options. Throws tandem::ConfigError for sizes that do not go together.
Options read_model_flags(const ModelFlags& flags);

/// Throws tandem::ConfigError when `app` was given a flag that belongs to other models than this --model.
void check_flags_of_models(const CLI::App& app, const std::string& model);

/// Whether a flag, such as "--hidden", is of any use with this --model.
bool flag_goes_with(const std::string& flag, const std::string& model);

/// The name that --model has for it; "script" for files.
const std::string& name_of(ModelKind model);

/// Whether it is trained on text, not on images.
bool is_text_model(ModelKind model);

}  // namespace train
