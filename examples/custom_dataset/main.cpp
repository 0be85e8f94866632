// Datasets of your own: one that is asked for samples by index and augments them, and one that is read from front to
// end. Whatever the number of ranks and of threads that read ahead, an epoch has the same samples, to the bit.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <tandem/data/data_loader.h>
#include <tandem/runtime/launch.h>
#include <torch/data/datasets/base.h>
#include <torch/types.h>

namespace {

using Sample = torch::data::Example<>;  // data and target, both tensors

constexpr int kGlobalBatch = 8;  // samples of a step, of all ranks together

// Sounds of a machine, every other one with a fault. By index: this is a dataset of torch::data. Several threads call
// `get` at the same time.
class Recordings : public torch::data::datasets::Dataset<Recordings, Sample> {
 public:
  Sample get(std::size_t index) override {
    const auto has_fault = static_cast<std::int64_t>(index % 2);
    const double pitch = 0.2 + 0.01 * static_cast<double>(index);
    auto sound = torch::sin(torch::arange(64, torch::kFloat) * pitch);  // a real one would read a file
    if (has_fault) sound += 0.5 * torch::sin(torch::arange(64, torch::kFloat) * (7.3 * pitch));

    // Augmentation. Random numbers are drawn as ever: while a dataset reads, they depend on the loader's seed, the
    // epoch and the index, and not on who reads.
    sound = torch::roll(sound, torch::randint(64, {1}).item<std::int64_t>());
    return {sound + 0.05 * torch::randn({64}), torch::tensor(has_fault)};
  }

  std::optional<std::size_t> size() const override { return 27; }
};

// Lines of "temperature,pressure,fault", one after another; `text` stands for a file or a connection. A stream: each
// epoch opens a new one. Rank 0 reads it for all.
auto readings(const std::string& text) {
  return tandem::data::IterableDataset([text](std::int64_t /*epoch*/) {
    return [lines = std::make_shared<std::istringstream>(text)]() -> std::optional<Sample> {
      double temperature = 0, pressure = 0;
      std::int64_t fault = 0;
      char comma = 0;
      if (!(*lines >> temperature >> comma >> pressure >> comma >> fault)) return std::nullopt;  // the epoch ends
      return Sample(torch::tensor({temperature, pressure}), torch::tensor(fault));
    };
  });
}

// The samples of two epochs, [2, samples, …], in the order in which all ranks together get them.
template <class Dataset>
torch::Tensor read(const Dataset& dataset, int ranks, tandem::data::DataLoaderOptions options) {
  options.batch_size = kGlobalBatch / ranks;
  torch::Tensor samples;
  tandem::launch({.cpu = ranks, .seed = 7}, [&](tandem::Accelerator& accelerator) {
    auto batches = accelerator.prepare(tandem::data::DataLoader(dataset, options));
    std::vector<torch::Tensor> epochs;
    for (int epoch = 0; epoch < 2; ++epoch) {
      std::vector<torch::Tensor> seen;
      for (auto& [data, target] : batches) seen.push_back(accelerator.gather_for_metrics(data));
      epochs.push_back(torch::cat(seen));
    }
    if (accelerator.is_main()) samples = torch::stack(epochs);
  });
  return samples;
}

// A number that changes when a sample does, or their order.
double checksum(const torch::Tensor& samples) {
  const auto values = samples.flatten().to(torch::kDouble);
  return (values * torch::arange(values.numel(), torch::kDouble).cos()).sum().item<double>();
}

void show(const char* name, int ranks, int workers, const torch::Tensor& samples) {
  std::printf("%s, ranks %d, workers %d: samples %d, epoch 0 %.12f, epoch 1 %.12f\n", name, ranks, workers,
              static_cast<int>(samples.size(1)), checksum(samples[0]), checksum(samples[1]));
}

}  // namespace

int main() {
  std::string log;
  for (int line = 0; line < 13; ++line)
    log += std::to_string(20 + line) + "," + std::to_string(1 + std::sin(line)) + "," + std::to_string(line % 2) + "\n";

  for (const auto& [ranks, workers] : {std::pair{1, 0}, {1, 3}, {2, 0}, {2, 3}, {4, 2}}) {
    show("recordings", ranks, workers, read(Recordings(), ranks, {.shuffle = true, .workers = workers}));
    show("readings", ranks, workers, read(readings(log), ranks, {.workers = workers}));
  }
}
