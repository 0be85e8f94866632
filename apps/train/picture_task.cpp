// Networks for images on pictures in folders, one a class.
#include <algorithm>
#include <cstdio>

#include "classification.h"
#include "make_net.h"
#include "model_flags.h"
#include "picture_folders.h"
#include "printable.h"
#include "tandem/core/error.h"
#include "tandem/data/transforms.h"

namespace train {
namespace {

namespace data = tandem::data;
namespace transforms = tandem::data::transforms;

constexpr double kSeen =
    224.0 / 256;  // of the shorter side, where training sees parts of pictures, as torchvision has it

std::int64_t default_size(ModelKind model) { return model == ModelKind::mlp || model == ModelKind::cnn ? 32 : 224; }

// ImageNet's by colour; grey has their means.
PictureFormat::Normalization normalization(const DataOptions& options, std::int64_t channels) {
  switch (options.normalize.value_or(Normalize::imagenet)) {
    case Normalize::none: return {};
    case Normalize::mnist:
      if (channels != 1)
        throw tandem::ConfigError("--normalize mnist is for grey pictures; give --channels 1 with it, or leave it out");
      return {{0.1307}, {0.3081}};
    default: break;
  }
  if (channels == 1) return {{0.449}, {0.226}};
  return {{0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};
}

PictureFormat format_of(const Options& options) {
  PictureFormat format;
  format.channels = options.data.channels.value_or(3);
  format.size = options.data.image_size.value_or(default_size(options.model));
  const Augment augment = options.data.augment.value_or(Augment::none);
  const bool sees_parts = augment == Augment::standard || augment == Augment::strong;
  format.resize = sees_parts ? std::llround(static_cast<double>(format.size) / kSeen) : format.size;
  format.normalization = normalization(options.data, format.channels);
  return format;
}

void add_normalization(std::vector<transforms::Transform>& all, const PictureFormat& format) {
  const auto& [mean, deviation] = format.normalization;
  if (!mean.empty()) all.emplace_back(transforms::Normalize(mean, deviation));
}

transforms::Transform composed(std::vector<transforms::Transform> all) {
  if (all.empty()) return {};
  return transforms::Compose(std::move(all));
}

// As pictures are judged, and trained on without --augment.
data::ImageFolderOptions centre(const PictureFormat& format) {
  std::vector<transforms::Transform> all;
  add_normalization(all, format);
  return {.exif_orientation = true,
          .shorter_side = format.resize,
          .crop = data::ImageSize{format.size, format.size},
          .channels = format.channels,
          .transform = composed(std::move(all)),
          .on_warning = [](const std::string& text) { std::fprintf(stderr, "train: warning: %s\n", text.c_str()); }};
}

// docs/train.md says the same in words.
data::ImageFolderOptions augmented(const PictureFormat& format, Augment augment) {
  data::ImageFolderOptions options = centre(format);
  if (augment == Augment::none) return options;
  const data::ImageSize size{format.size, format.size};
  std::vector<transforms::Transform> all;
  if (augment == Augment::light) {
    const std::int64_t around = std::max<std::int64_t>(format.size / 8, 1);
    all.emplace_back(
        transforms::RandomCrop(size, {.padding = {around}, .padding_mode = transforms::PaddingMode::edge}));
  } else {
    options.shorter_side.reset();
    options.crop.reset();
    all.emplace_back(transforms::RandomResizedCrop(size));
  }
  all.emplace_back(transforms::RandomHorizontalFlip());
  if (augment == Augment::strong) all.emplace_back(transforms::TrivialAugmentWide());
  add_normalization(all, format);
  if (augment == Augment::strong) all.emplace_back(transforms::RandomErasing({.p = 0.1}));
  options.transform = composed(std::move(all));
  return options;
}

// One half of the batches mixed, the other with parts exchanged.
class MixUpOrCutMix {
 public:
  explicit MixUpOrCutMix(std::int64_t classes)
      : mix_up_({.alpha = 0.2, .num_classes = classes}), cut_mix_({.alpha = 1.0, .num_classes = classes}) {}

  Batch operator()(std::vector<Batch> samples) const {
    const bool mixes = at::rand({1}).item<float>() < 0.5F;
    return mixes ? mix_up_(std::move(samples)) : cut_mix_(std::move(samples));
  }

 private:
  transforms::MixUp mix_up_;
  transforms::CutMix cut_mix_;
};

// A dataset of {picture, label}.
class Pictures : public torch::data::datasets::Dataset<Pictures, Batch> {
 public:
  Pictures(const PictureSet& set, data::ImageFolderOptions options)
      : set_(std::make_shared<PictureSet>(
            PictureSet{data::ImageFolder(set.folder, std::move(options)), set.pictures, set.labels})) {}

  Batch get(std::size_t index) override {
    try {
      Batch sample = set_->folder.get(set_->pictures[index]);
      return {std::move(sample.data), at::scalar_tensor(set_->label(index), at::kLong)};
    } catch (const tandem::DataError& error) {
      throw tandem::DataError(std::string(error.what()) + "; --skip-bad-images leaves out what cannot be read");
    }
  }

  std::optional<std::size_t> size() const override { return set_->pictures.size(); }

  std::uint64_t fingerprint() const { return set_->folder.fingerprint(); }

 private:
  std::shared_ptr<PictureSet> set_;
};

class PictureTask : public Classification {
 public:
  PictureTask(const Options& options, PictureSets sets)
      : Classification(sets.classes, "validation", options.label_smoothing),
        options_(options),
        sets_(std::move(sets)),
        format_(format_of(options)) {}

  Samples train_set() const override {
    const Augment augment = options_.data.augment.value_or(Augment::none);
    const Pictures pictures(sets_.train, augmented(format_, augment));
    if (augment != Augment::strong) return Samples(pictures);
    return {pictures, MixUpOrCutMix(static_cast<std::int64_t>(classes().size()))};
  }

  Samples test_set() const override { return Samples(Pictures(sets_.val, centre(format_))); }
  std::int64_t test_batch() const override { return 32; }

  int workers() const override {
    const auto& machine = options_.machine;
    return std::max(1, machine.cores - machine.local_ranks() * machine.threads_per_rank);
  }

  std::shared_ptr<data::Sampler> sampler() const override {
    if (!options_.data.balance_classes) return nullptr;
    const std::size_t samples = sets_.train.pictures.size();
    const auto of_class = samples_of_classes();
    std::vector<double> weights;
    for (std::size_t i = 0; i < samples; ++i)
      weights.push_back(1 / static_cast<double>(of_class[static_cast<std::size_t>(sets_.train.label(i))]));
    return std::make_shared<data::WeightedRandomSampler>(weights, static_cast<std::int64_t>(samples),
                                                         data::WeightedSamplerOptions{.seed = options_.launch.seed});
  }

  std::shared_ptr<Net> make_net() const override {
    return make_image_net(
        options_,
        {.channels = format_.channels, .size = format_.size, .classes = static_cast<std::int64_t>(classes().size())});
  }

  std::optional<PictureFormat> picture_format() const override { return format_; }

  std::string about() const override {
    const std::string side = std::to_string(format_.size);
    return options_.data.dir + ": " + counted(std::ssize(sets_.train.pictures), "picture") + " of " +
           std::to_string(classes().size()) + " classes to train on, " + std::to_string(sets_.val.pictures.size()) +
           " to judge by, of " + side + " x " + side + " pixels\n" + count_classes();
  }

  std::string data() const override { return sets_.data; }

  std::vector<std::string> left_out() const override { return train::left_out(sets_); }

  std::vector<std::int64_t> samples_of_classes() const override {
    std::vector<std::int64_t> of_class(classes().size());
    for (std::size_t i = 0; i < sets_.train.pictures.size(); ++i)
      of_class[static_cast<std::size_t>(sets_.train.label(i))] += 1;
    return of_class;
  }

 private:
  // So that folders that were taken for classes by mistake are seen.
  std::string count_classes() const {
    constexpr std::size_t kShown = 20;
    const auto names = classes();
    const auto pictures = samples_of_classes();
    std::string text = "classes:";
    for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i)
      text += (i > 0 ? ", " : " ") + names[i] + " (" + std::to_string(pictures[i]) + ")";
    return names.size() > kShown ? text + " and " + std::to_string(names.size() - kShown) + " more" : text;
  }

  const Options options_;
  PictureSets sets_;
  PictureFormat format_;
};

}  // namespace

std::unique_ptr<const Task> make_picture_task(const Options& options) {
  return std::make_unique<PictureTask>(options, list_pictures(options));
}

}  // namespace train
