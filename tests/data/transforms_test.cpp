// What transforms give is compared with torchvision's in tests/python/transforms_test.py; here is what a loader makes
// of them, and what they refuse.
#include "tandem/data/transforms.h"

#include <filesystem>
#include <map>

#include <torch/data/transforms/tensor.h>

#include "support/image_files.h"
#include "support/index_data.h"
#include "support/temp_dir.h"
#include "tandem/data/image_folder.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::data::transforms;
using data::ImageFolder;

namespace {

using Labelled = torch::data::Example<>;

// Pictures 0 to 11, each a class of its own, so that its label tells which it is.
struct Pictures {
  TempDir dir;
  Pictures() {
    for (int i = 0; i < 12; ++i) {
      const std::string folder = dir / std::to_string(100 + i);
      std::filesystem::create_directory(folder);
      write_png(folder + "/1.png", Raster::of(30 + i, 40, 3, [i](int y, int x, int c) { return y * 5 + x * c + i; }));
    }
  }
};

Compose everything() {
  return Compose({RandomResizedCrop({16, 16}), RandomHorizontalFlip(),
                  ColorJitter({.brightness = 0.4, .contrast = 0.4, .saturation = 0.4, .hue = 0.1}),
                  TrivialAugmentWide(), RandomCrop({16, 16}, {.padding = {2}}),
                  Normalize({0.5, 0.4, 0.3}, {0.2, 0.3, 0.4}), RandomErasing({.value = {}})});
}

// By label, each time that it came.
using Seen = std::map<std::int64_t, std::vector<at::Tensor>>;

struct Mode {
  int ranks = 1, workers = 0;
  bool dispatch = false;
};

// What all ranks get of two epochs, from `from` on; `state`: that after three steps of the first epoch.
Seen see(const std::string& folder, const Mode& mode, const std::optional<data::LoaderState>& from = {},
         data::LoaderState* state = nullptr) {
  return on_ranks<Seen>(
      mode.ranks, {.data_loader = {.dispatch_batches = mode.dispatch}}, [&](Accelerator& accelerator) {
        auto loader = accelerator.prepare(
            data::DataLoader(ImageFolder(folder, {.transform = everything()}),
                             {.batch_size = 4 / mode.ranks, .shuffle = true, .seed = 3, .workers = mode.workers}));
        if (from) loader.load_state_dict(*from);
        Seen seen;
        while (loader.epoch() < 2) {
          std::int64_t step = 0;
          for (auto& batch : loader) {
            const Labelled all = accelerator.gather(batch);
            for (std::int64_t i = 0; i < all.data.size(0); ++i)
              seen[all.target[i].item<std::int64_t>()].push_back(all.data[i].clone());
            if (++step == 2 && loader.epoch() == 0 && state && accelerator.is_main()) *state = loader.state_dict();
          }
        }
        return seen;
      })[0];
}

bool same(const Seen& a, const Seen& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](const auto& x, const auto& y) {
           return x.first == y.first && x.second.size() == y.second.size() &&
                  std::equal(x.second.begin(), x.second.end(), y.second.begin(),
                             [](const at::Tensor& p, const at::Tensor& q) { return at::equal(p, q); });
         });
}

std::map<std::string, Transform> all_transforms() {
  return {{"RandomResizedCrop", RandomResizedCrop({5, 6})},
          {"RandomCrop", RandomCrop({7, 8})},
          {"RandomCrop padded", RandomCrop({12, 12}, {.padding = {3}})},
          {"RandomHorizontalFlip", RandomHorizontalFlip(1)},
          {"ColorJitter", ColorJitter({.brightness = 0.5, .contrast = 0.5, .saturation = 0.5, .hue = 0.5})},
          {"RandomErasing", RandomErasing({.p = 1, .value = {1, 2, 3}})},
          {"TrivialAugmentWide", TrivialAugmentWide()},
          {"Normalize", Normalize({0, 0, 0}, {1, 1, 1})}};
}

}  // namespace

TEST_CASE("a sample is changed alike on any number of ranks and workers, anew each epoch, and after resuming") {
  const Pictures pictures;
  data::LoaderState state;
  const Seen whole = see(pictures.dir.path(), {}, {}, &state);
  REQUIRE(whole.size() == 12);
  for (const auto& [label, samples] : whole) {
    REQUIRE(samples.size() == 2);
    CHECK_FALSE(at::equal(samples[0], samples[1]));
  }
  for (const Mode& mode : {Mode{1, 2, false}, {2, 0, false}, {2, 2, false}, {4, 1, false}, {2, 2, true}}) {
    INFO(mode.ranks << " ranks, " << mode.workers << " workers, dispatch " << mode.dispatch);
    CHECK(same(see(pictures.dir.path(), mode), whole));
  }
  const Seen rest = see(pictures.dir.path(), {2, 2, false}, state);
  std::size_t samples = 0;
  for (const auto& [label, again] : rest) {
    samples += again.size();
    CHECK(at::equal(again.back(), whole.at(label).back()));
    if (again.size() == 2) CHECK(at::equal(again.front(), whole.at(label).front()));
  }
  CHECK(samples == 16);
}

TEST_CASE("MixUp and CutMix as a collation draw the same with any number of workers, and anew for each batch") {
  const Pictures pictures;
  const auto epoch_of = [&](auto mix, int workers) {
    return on_ranks<std::vector<Labelled>>(1, [&](Accelerator& accelerator) {
      auto loader =
          accelerator.prepare(data::DataLoader(ImageFolder(pictures.dir.path(), {.transform = everything()}),
                                               {.batch_size = 4, .shuffle = true, .seed = 3, .workers = workers})
                                  .with_collate(mix));
      std::vector<Labelled> batches;
      for (auto& batch : loader) batches.push_back(batch);
      return batches;
    })[0];
  };
  const auto check = [&](auto mix) {
    const auto alone = epoch_of(mix, 0), together = epoch_of(mix, 3);
    REQUIRE(alone.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(at::equal(alone[i].data, together[i].data));
      CHECK(at::equal(alone[i].target, together[i].target));
      CHECK(alone[i].target.sizes() == std::vector<std::int64_t>{4, 12});
      CHECK(at::allclose(alone[i].target.sum(1), at::ones({4})));
    }
    const auto share = [](const Labelled& batch) {
      return std::get<0>(batch.target.sort(1))[0][-1].template item<float>();
    };
    CHECK(share(alone[0]) != share(alone[1]));
  };
  check(MixUp({.num_classes = 12}));
  check(CutMix({.num_classes = 12}));
}

TEST_CASE("transforms leave what they are given, its type and its channels, in any memory layout") {
  for (const at::ScalarType type : {at::kByte, at::kFloat, at::kDouble})
    for (const bool side_by_side : {false, true})
      for (const auto& [name, transform] : all_transforms())
        for (int seed = 0; seed < (name == "TrivialAugmentWide" ? 60 : 3); ++seed) {
          at::manual_seed(seed);
          at::Tensor image = at::rand({3, 9, 10}, at::kDouble).mul(type == at::kByte ? 255 : 1).to(type);
          if (side_by_side) image = image.permute({1, 2, 0}).contiguous().permute({2, 0, 1});
          const at::Tensor before = image.clone();
          at::manual_seed(seed + 1);
          const at::Tensor result = transform(image);
          INFO(name << " of " << type << ", seed " << seed);
          CHECK(at::equal(image, before));
          CHECK(result.scalar_type() == (name == "Normalize" && type == at::kByte ? at::kFloat : type));
          CHECK(result.size(0) == 3);
          at::manual_seed(seed + 1);
          const at::Tensor expected = transform(before.contiguous());
          CHECK(at::allclose(result.to(at::kDouble), expected.to(at::kDouble), 0, type == at::kByte ? 1 : 1e-6));
        }
}

TEST_CASE("transforms go into LibTorch's datasets too, where each sample has numbers of its own") {
  const auto mapped = ImageFolder(Pictures().dir.path(), {.crop = data::ImageSize{20, 20}})
                          .map(torch::data::transforms::TensorLambda<>(RandomCrop({9, 9})));
  CHECK(data::DataLoader(mapped).length() == 12);
}

TEST_CASE("options of transforms that are out of range are errors that name transform and option") {
  const auto text_of = [](auto make) -> std::string {
    try {
      make();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  const double nan = std::nan("");
  CHECK_THAT(text_of([] { RandomResizedCrop({0, 5}); }), ContainsSubstring("RandomResizedCrop: the size is 0 x 5"));
  CHECK_THAT(text_of([] {
               RandomResizedCrop({5, 5}, {.scale = {0.5, 1.1}});
             }),
             ContainsSubstring("RandomResizedCrop: scale"));
  CHECK_THAT(text_of([] {
               RandomResizedCrop({5, 5}, {.scale = {0.5, 0.1}});
             }),
             ContainsSubstring("RandomResizedCrop: scale"));
  CHECK_THAT(text_of([] {
               RandomResizedCrop({5, 5}, {.ratio = {0, 1}});
             }),
             ContainsSubstring("RandomResizedCrop: ratio"));
  CHECK_THAT(text_of([=] {
               RandomResizedCrop({5, 5}, {.ratio = {1, nan}});
             }),
             ContainsSubstring("RandomResizedCrop: ratio"));
  CHECK_THAT(text_of([] { RandomCrop({5, -1}); }), ContainsSubstring("RandomCrop: the size"));
  CHECK_THAT(text_of([] {
               RandomCrop({5, 5}, {.padding = {1, 2, 3}});
             }),
             ContainsSubstring("RandomCrop: padding has 3"));
  CHECK_THAT(text_of([] { RandomCrop({5, 5}, {.padding = {-1}}); }), ContainsSubstring("RandomCrop: padding"));
  CHECK_THAT(text_of([] { RandomCrop({5, 5}, {.fill = {}}); }), ContainsSubstring("RandomCrop: fill"));
  CHECK_THAT(text_of([=] { RandomHorizontalFlip{nan}; }), ContainsSubstring("RandomHorizontalFlip: p"));
  CHECK_THAT(text_of([] { RandomHorizontalFlip{1.5}; }), ContainsSubstring("RandomHorizontalFlip: p"));
  CHECK_THAT(text_of([] { ColorJitter({.brightness = -0.1}); }), ContainsSubstring("ColorJitter: brightness"));
  CHECK_THAT(text_of([] { ColorJitter({.contrast = {2, 1}}); }), ContainsSubstring("ColorJitter: contrast"));
  CHECK_THAT(text_of([] { ColorJitter({.hue = 0.6}); }), ContainsSubstring("ColorJitter: hue"));
  CHECK_THAT(text_of([=] { ColorJitter({.saturation = nan}); }), ContainsSubstring("ColorJitter: saturation"));
  CHECK_THAT(text_of([] { RandomErasing({.p = -1}); }), ContainsSubstring("RandomErasing: p"));
  CHECK_THAT(text_of([] { RandomErasing({.scale = {-0.1, 0.5}}); }), ContainsSubstring("RandomErasing: scale"));
  CHECK_THAT(text_of([=] { RandomErasing({.value = {nan}}); }), ContainsSubstring("RandomErasing: a fill"));
  CHECK_THAT(text_of([] { Normalize({0, 0}, {1}); }), ContainsSubstring("Normalize: 2 means and 1"));
  CHECK_THAT(text_of([] { Normalize({}, {}); }), ContainsSubstring("Normalize: 0 means"));
  CHECK_THAT(text_of([] { Normalize({0}, {0}); }), ContainsSubstring("Normalize: mean"));
  CHECK_THAT(text_of([] { TrivialAugmentWide({.num_magnitude_bins = 1}); }),
             ContainsSubstring("num_magnitude_bins is 1"));
  CHECK_THAT(text_of([] { MixUp({.alpha = 0}); }), ContainsSubstring("MixUp: alpha"));
  CHECK_THAT(text_of([] { CutMix({.num_classes = -1}); }), ContainsSubstring("CutMix: num_classes"));
  CHECK_THAT(text_of([] { Compose({Transform()}); }), ContainsSubstring("Compose: a transform is empty"));
}

TEST_CASE("what is no picture, or none for a transform, is an error that names the transform") {
  for (const auto& [name, transform] : all_transforms()) {
    if (name == "RandomHorizontalFlip") continue;  // which turns any tensor
    const std::string first = name.substr(0, name.find(' '));
    INFO(name);
    for (const at::Tensor& image : {at::rand({9, 9}), at::zeros({3, 9, 9}, at::kInt), at::rand({3, 0, 9})})
      CHECK_THROWS_WITH(transform(image), ContainsSubstring(first + " is for pictures"));
  }
  const at::Tensor two = at::rand({2, 9, 9});
  CHECK_THROWS_AS(ColorJitter({.hue = 0.5})(two), DataError);
  CHECK_THROWS_AS(TrivialAugmentWide()(two), DataError);
  CHECK_THROWS_WITH(Normalize({0, 0, 0}, {1, 1, 1})(two), ContainsSubstring("2 channels, and numbers for 3"));
  CHECK_THROWS_WITH(RandomErasing({.p = 1, .value = {1, 2, 3}})(two), ContainsSubstring("3 values"));
  CHECK_THROWS_WITH(RandomCrop({12, 12}, {.padding = {2}, .fill = {1, 2, 3}})(two),
                    ContainsSubstring("fill of 3 values"));
  CHECK_THROWS_WITH(RandomCrop({12, 9})(two), ContainsSubstring("9 x 9 pixels, with its padding, is smaller"));
  CHECK_THROWS_WITH(RandomCrop({12, 9}, {.padding = {9}, .padding_mode = PaddingMode::reflect})(two),
                    ContainsSubstring("cannot be mirrored for a padding of 9; use at most 8"));
  const MixUp mix({.num_classes = 3});
  CHECK_THROWS_WITH(mix(Labelled(at::rand({2, 3, 4, 4}), at::tensor({0, 3}, at::kLong))),
                    ContainsSubstring("labels from 0 to 3, and num_classes is 3"));
  CHECK_THROWS_WITH(mix(Labelled(at::rand({2, 3, 4, 4}), at::zeros({3}, at::kLong))),
                    ContainsSubstring("MixUp is for batches"));
  CHECK_THROWS_WITH(mix(Labelled(at::zeros({2, 3, 4, 4}, at::kByte), at::zeros({2}, at::kLong))),
                    ContainsSubstring("not of bytes"));
  CHECK_THROWS_WITH(CutMix({})(Labelled(at::rand({2, 3, 4}), at::zeros({2}, at::kLong))),
                    ContainsSubstring("CutMix is for batches"));
}
