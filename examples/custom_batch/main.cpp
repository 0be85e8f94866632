// A struct of your own as the batch: pictures with boxes, of which each picture has another number, and names. One
// function, `batch_fields`, says where its tensors are; loaders, gather and pad do the rest.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <tandem/data/data_loader.h>
#include <tandem/runtime/launch.h>
#include <torch/data/datasets/base.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/types.h>

namespace {

struct Scene {
  torch::Tensor image;  // float32 [16, 16]
  torch::Tensor boxes;  // float32 [number of boxes, 4]: left, top, right, bottom in pixels
  std::string name;
};

struct SceneBatch {
  torch::Tensor images;            // float32 [B, 16, 16]
  torch::Tensor boxes;             // float32 [B, most boxes of a scene, 4], filled up with boxes of size 0
  std::vector<std::string> names;  // B
};
auto batch_fields(SceneBatch& batch) { return std::tie(batch.images, batch.boxes); }

// Bright boxes on noise, at most one a quarter of the picture.
class Scenes : public torch::data::datasets::Dataset<Scenes, Scene> {
 public:
  Scenes(std::size_t first, std::size_t size) : first_(first), size_(size) {}

  Scene get(std::size_t index) override {
    const std::size_t number = first_ + index;
    Scene scene{0.1 * torch::randn({16, 16}), torch::empty({0, 4}), "scene " + std::to_string(number)};
    for (std::int64_t quarter = 0; quarter < 4; ++quarter) {
      const auto size = static_cast<std::int64_t>((number * 7 + static_cast<std::size_t>(quarter) * 5) % 8);
      if (size < 3) continue;
      const std::int64_t left = 8 * (quarter % 2), top = 8 * (quarter / 2), right = left + size, bottom = top + size;
      scene.image.slice(0, top, bottom).slice(1, left, right) += 1;
      scene.boxes = torch::cat({scene.boxes, torch::tensor({left, top, right, bottom}, torch::kFloat).unsqueeze(0)});
    }
    return scene;
  }

  std::optional<std::size_t> size() const override { return size_; }

 private:
  std::size_t first_, size_;
};

SceneBatch collate(std::vector<Scene> scenes) {
  std::int64_t most = 1;
  for (const Scene& scene : scenes) most = std::max(most, scene.boxes.size(0));
  std::vector<torch::Tensor> images, boxes;
  SceneBatch batch;
  for (Scene& scene : scenes) {
    images.push_back(scene.image);
    boxes.push_back(torch::constant_pad_nd(scene.boxes, {0, 0, 0, most - scene.boxes.size(0)}));
    batch.names.push_back(std::move(scene.name));
  }
  batch.images = torch::stack(images);
  batch.boxes = torch::stack(boxes);
  return batch;
}

// Rows [begin, end), for split_batches, where rank 0 reads one batch and divides it. Without this the tensors are
// divided, and each rank has all names.
SceneBatch rows(const SceneBatch& batch, std::int64_t begin, std::int64_t end) {
  return {batch.images.slice(0, begin, end),
          batch.boxes.slice(0, begin, end),
          {batch.names.begin() + begin, batch.names.begin() + end}};
}

// Part of the picture that is in boxes, [B].
torch::Tensor covered(const torch::Tensor& boxes) {
  const auto size = boxes.slice(-1, 2, 4) - boxes.slice(-1, 0, 2);
  return size.prod(-1).sum(-1) / (16 * 16);
}

auto loader(Scenes scenes, std::int64_t batch_size, bool shuffle) {
  return tandem::data::DataLoader(scenes, {.batch_size = batch_size, .shuffle = shuffle})
      .with_collate(collate)
      .with_slice(rows);
}

// Learns to tell how much of a picture is in boxes, and says on which scene it is worst.
void train(tandem::Accelerator& accelerator, const char* mode) {
  // A loader's batch_size is that of a rank, or of all ranks.
  const std::int64_t batch_size =
      accelerator.state().config.data_loader.split_batches ? 8 : 8 / accelerator.world_size();
  torch::nn::Sequential net(torch::nn::Flatten(), torch::nn::Linear(16 * 16, 1));
  torch::optim::AdamW adamw(net->parameters(), 1e-3);
  auto [model, optimizer, train_batches, test_batches] =
      accelerator.prepare(net, adamw, loader({0, 400}, batch_size, true), loader({400, 53}, batch_size, false));

  while (train_batches.epoch() < 20)
    for (auto& batch : train_batches) {
      auto window = accelerator.accumulate(model);
      accelerator.backward(torch::mse_loss(model(batch.images).squeeze(1), covered(batch.boxes)));
      optimizer.step();
      optimizer.zero_grad();
    }

  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> errors, boxes;
  std::vector<std::string> names;
  for (auto& batch : test_batches) {
    const auto error = (model(batch.images).squeeze(1) - covered(batch.boxes)).abs();
    // Ranks whose scenes have fewer boxes fill up, so that all can be joined: structs in pairs, or anything nested.
    const auto [all, all_errors] =
        accelerator.gather_for_metrics(std::pair(accelerator.pad_across_ranks(batch, /*dim=*/1), error));
    errors.push_back(all_errors);
    boxes.push_back((all.boxes.sum(-1) > 0).sum(1));
    // What is not a tensor is gathered as an object, with the samples that the loader repeated to fill the last step.
    for (const auto& part : accelerator.gather_objects(batch.names))
      names.insert(names.end(), part.begin(), part.end());
  }
  const auto error = torch::cat(errors);
  names.resize(static_cast<std::size_t>(error.size(0)));
  accelerator.print(mode, ": ", names.size(), " scenes (", names.front(), " to ", names.back(), ") with ",
                    torch::cat(boxes).sum().item<std::int64_t>(), " boxes, mean error ", error.mean().item<double>(),
                    ", worst at ", names[static_cast<std::size_t>(error.argmax().item<std::int64_t>())]);
}

}  // namespace

int main() {
  using Configuration = tandem::data::DataLoaderConfiguration;
  // With use_seedable_sampler all modes have the same order of samples; otherwise each has Accelerate's.
  const std::pair<const char*, Configuration> modes[] = {
      // Each rank reads its own batches.
      {"shard", Configuration{.use_seedable_sampler = true}},
      // Rank 0 reads all batches.
      {"dispatch", Configuration{.dispatch_batches = true, .use_seedable_sampler = true}},
      // Rank 0 reads one batch for all, which is divided.
      {"split", Configuration{.split_batches = true, .dispatch_batches = true, .use_seedable_sampler = true}},
  };
  for (const auto& [name, configuration] : modes)
    tandem::launch({.cpu = 2, .data_loader = configuration},
                   [name = name](tandem::Accelerator& accelerator) { train(accelerator, name); });
}
