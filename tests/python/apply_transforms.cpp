// Applies transforms for transforms_test.py, which has the same cases: apply_transforms IMAGES OUTPUT < LINES. IMAGES
// and OUTPUT are safetensors files. A line is a case, the name of an image (of a batch also NAME.labels) and a seed;
// the result goes to "CASE NAME SEED", and the targets of a batch beside it.
#include <iostream>
#include <map>
#include <string>

#include "tandem/data/transforms.h"
#include "tandem/io/safetensors.h"
#include "tandem/rng/generators.h"

namespace {

using namespace tandem::data::transforms;

const std::map<std::string, Transform>& cases() {
  constexpr auto kBilinear = Interpolation::bilinear;
  static const std::map<std::string, Transform> all{
      {"RandomResizedCrop", RandomResizedCrop({24, 20})},
      {"RandomResizedCrop larger", RandomResizedCrop({90, 70}, {.scale = {0.5, 1}, .ratio = {0.5, 2}})},
      {"RandomResizedCrop never fits", RandomResizedCrop({20, 20}, {.scale = {1, 1}, .ratio = {4, 5}})},
      {"RandomResizedCrop never fits upright", RandomResizedCrop({20, 20}, {.scale = {1, 1}, .ratio = {0.1, 0.2}})},
      {"RandomCrop", RandomCrop({20, 17})},
      {"RandomCrop padded", RandomCrop({32, 32}, {.padding = {4}, .fill = {0.25, 0.5, 3}})},
      {"RandomCrop if needed", RandomCrop({60, 70}, {.padding = {3, 1}, .pad_if_needed = true})},
      {"RandomCrop edge", RandomCrop({32, 32}, {.padding = {50}, .padding_mode = PaddingMode::edge})},
      {"RandomCrop reflect", RandomCrop({40, 32}, {.padding = {1, 2, 3, 9}, .padding_mode = PaddingMode::reflect})},
      {"RandomCrop symmetric", RandomCrop({40, 32}, {.padding = {9, 2, 3, 9}, .padding_mode = PaddingMode::symmetric})},
      {"RandomHorizontalFlip", RandomHorizontalFlip()},
      {"RandomHorizontalFlip 0.9", RandomHorizontalFlip(0.9)},
      {"ColorJitter", ColorJitter({.brightness = 0.4, .contrast = 0.4, .saturation = 0.4, .hue = 0.2})},
      {"ColorJitter ranges", ColorJitter({.brightness = {0, 0.5}, .contrast = 3, .hue = {-0.5, 0.5}})},
      {"ColorJitter hue", ColorJitter({.hue = 0.5})},
      {"RandomErasing", RandomErasing()},
      {"RandomErasing colors", RandomErasing({.p = 1, .ratio = {1, 1}, .value = {0.5, 7, 1}})},
      {"RandomErasing random", RandomErasing({.p = 0.8, .scale = {0.3, 0.9}, .value = {}})},
      {"Normalize", Normalize({0.485, 0.456, 0.406}, {0.229, 0.224, 0.225})},
      {"TrivialAugmentWide", TrivialAugmentWide()},
      {"TrivialAugmentWide bilinear", TrivialAugmentWide({.interpolation = kBilinear, .fill = {0.5, 9, 0.25}})},
      {"TrivialAugmentWide 7", TrivialAugmentWide({.num_magnitude_bins = 7, .fill = {0.75}})},
      {"all", Compose({RandomResizedCrop({24, 24}), RandomHorizontalFlip(), TrivialAugmentWide(),
                       Normalize({0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}), RandomErasing({.p = 0.5})})}};
  return all;
}

torch::data::Example<> mix(const std::string& name, const torch::data::Example<>& batch) {
  if (name == "MixUp") return MixUp({.num_classes = 5})(batch);
  if (name == "MixUp 0.2") return MixUp({.alpha = 0.2, .num_classes = 5})(batch);
  return CutMix({.alpha = 0.7, .num_classes = 5})(batch);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::map<std::string, at::Tensor> images;
  for (const auto& [name, tensor] : tandem::io::load_safetensors(argv[1])) images.emplace(name, tensor);
  tandem::io::NamedTensors results;
  for (std::string name, image, seed;
       std::getline(std::cin, name, '\t') && std::getline(std::cin, image, '\t') && std::getline(std::cin, seed);) {
    tandem::rng::manual_seed(std::stoull(seed));
    const std::string result = name + " " + image + " " + seed;
    if (const auto labels = images.find(image + ".labels"); labels != images.end()) {
      const auto mixed = mix(name, {images.at(image), labels->second});
      results.emplace_back(result, mixed.data);
      results.emplace_back(result + " targets", mixed.target);
    } else {
      results.emplace_back(result, cases().at(name)(images.at(image)).contiguous());
    }
  }
  tandem::io::save_safetensors(argv[2], results);
  return 0;
}
