#include "data_flags.h"

#include <CLI/CLI.hpp>
#include <map>

#include "real_range.h"
#include "tandem/core/error.h"

namespace train {
namespace {

constexpr std::int64_t kMany = 1'000'000'000;

const std::map<std::string, Augment> kAugments{
    {"none", Augment::none}, {"light", Augment::light}, {"standard", Augment::standard}, {"strong", Augment::strong}};
const std::map<std::string, Normalize> kNormalizes{
    {"imagenet", Normalize::imagenet}, {"mnist", Normalize::mnist}, {"none", Normalize::none}};

// A flag that has one of these names for its value.
template <class Value>
CLI::Option* add_choice(CLI::App& app, const char* flag, std::optional<Value>& value,
                        const std::map<std::string, Value>& names, const char* what) {
  return app
      .add_option_function<std::string>(
          flag, [&value, &names](const std::string& name) { value = names.at(name); }, what)
      ->check(CLI::IsMember(names));
}

const std::map<std::string, tandem::data::TextTokens> kTokens{{"bytes", tandem::data::TextTokens::bytes},
                                                              {"uint16", tandem::data::TextTokens::uint16},
                                                              {"uint32", tandem::data::TextTokens::uint32}};

std::string refuse_ends(const std::string& text) {
  const double share = std::atof(text.c_str());
  if (share <= 0) return text + " leaves nothing to judge by; use more than 0";
  return share < 1 ? std::string() : text + " leaves nothing to train on; use less than 1";
}

CLI::Validator one_or_three() {
  return CLI::Validator(
      [](std::string& text) { return text == "1" || text == "3" ? std::string() : text + " is neither 1 nor 3"; },
      "{1,3}");
}

void add_picture_flags(CLI::App& app, DataOptions& options) {
  app.add_option("--image-size", options.image_size,
                 "pixels of each side that pictures get (default: 224, for the mlp and the cnn 32)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{8192}));
  app.add_option("--channels", options.channels, "3: coloured pictures (the default), 1: grey ones")
      ->check(one_or_three());
  add_choice(app, "--augment", options.augment, kAugments,
             "how pictures are changed at random while they are trained on (default: none)");
  app.add_flag("--balance-classes", options.balance_classes,
               "draw the pictures so that each class comes as often as the others");
  app.add_flag("--skip-bad-images", options.skip_bad_images,
               "leave out pictures that cannot be read, instead of ending; all are read once before training");
}

void add_file_flags(CLI::App& app, DataOptions& options) {
  auto* const directory =
      app.add_option("--data-dir", options.dir,
                     "folder of pictures, with train/ and val/ or one folder a class, or with the four files of MNIST")
          ->type_name("DIR")
          ->capture_default_str();
  auto* const file =
      app.add_option("--data-file", options.file,
                     "text or token ids for the gpt or gpt2; for other models a table: a safetensors file with the "
                     "tensors inputs and targets")
          ->type_name("FILE")
          ->excludes(directory);
  auto* const val_file = app.add_option("--val-file", options.val_file, "such a file that the network is judged by")
                             ->type_name("FILE")
                             ->needs(file);
  app.add_option("--val-split", options.val_split,
                 "share of the samples that the network is judged by, where none are apart: of a text its end "
                 "(default: 0.1)")
      ->check(real_range(0.0, 1.0))
      ->check(refuse_ends)
      ->excludes(val_file);
  app.add_option_function<std::string>(
         "--tokens", [&options](const std::string& name) { options.tokens = kTokens.at(name); },
         "what the file of the gpt or gpt2 has: bytes of text, or token ids of two or four bytes")
      ->check(CLI::IsMember(kTokens))
      ->default_str("bytes");
}

}  // namespace

void add_data_flags(CLI::App& app, DataOptions& options) {
  add_file_flags(app, options);
  add_picture_flags(app, options);
  app.add_option("--workers", options.workers,
                 "threads that read ahead, for all ranks together (default: for pictures as many as there are cores "
                 "that no rank computes on, at least one; otherwise none)")
      ->check(CLI::Range(0, 1024));
  app.add_option("--limit-train-samples", options.limit,
                 "train on N samples only: the first ones, or of pictures a "
                 "share of each class")
      ->check(CLI::Range(std::int64_t{1}, kMany));
  app.add_flag_function(
      "--no-shuffle", [&options](std::int64_t given) { options.shuffle = given <= 0; },
      "take the samples in their order");
  add_choice(app, "--normalize", options.normalize, kNormalizes,
             "what values v from 0 to 1 become: mnist: (v - 0.1307)/0.3081, imagenet: the same with ImageNet's means "
             "and deviations, none: v (default: imagenet for pictures in folders, mnist for MNIST)");
}

void refuse_picture_flags(const DataOptions& options, const std::string& data) {
  const auto refuse = [&](const char* flag) {
    throw tandem::ConfigError(std::string(flag) + " is for pictures in folders; the data is " + data);
  };
  if (options.image_size) refuse("--image-size");
  if (options.channels) refuse("--channels");
  if (options.augment) refuse("--augment");
  if (options.balance_classes) refuse("--balance-classes");
  if (options.skip_bad_images) refuse("--skip-bad-images");
  if (options.normalize == Normalize::imagenet) refuse("--normalize imagenet");
}

}  // namespace train
