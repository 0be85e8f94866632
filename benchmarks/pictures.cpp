// pictures FOLDER: a training's pictures through ImageFolder and a loader: decode, RandomResizedCrop to 224, flip,
// normalise. Prints a JSON line as benchmarks/peers/pictures_peer.py, which does the same: pictures/s over the epochs
// after the first, and the largest PSS in MB. benchmarks/pictures_vs_peers runs both.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>

#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tandem/tandem.h"

namespace {

namespace data = tandem::data;
namespace transforms = tandem::data::transforms;

// Proportional set size of this process.
double pss_mb() {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string word; file >> word;)
    if (double kib = 0; word == "Pss:" && file >> kib) return kib * 1024 / 1e6;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string folder;
  int workers = 2, epochs = 3;
  CLI::App app("Pictures through ImageFolder and a loader", "pictures");
  app.add_option("folder", folder, "one folder of JPEGs a class")->required();
  app.add_option("--workers", workers, "threads that decode")->capture_default_str();
  app.add_option("--epochs", epochs, "the first is not timed")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(1);
  double seconds = 0, memory = 0;
  std::int64_t pictures = 0;
  tandem::launch({.cpu = 1, .threads_per_rank = 1}, [&](tandem::Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(
        data::ImageFolder(folder, {.transform = transforms::Compose(
                                       {transforms::RandomResizedCrop({224, 224}), transforms::RandomHorizontalFlip(),
                                        transforms::Normalize({0.485, 0.456, 0.406}, {0.229, 0.224, 0.225})})}),
        {.batch_size = 64, .shuffle = true, .workers = workers}));
    for (int epoch = 0; epoch < epochs; ++epoch) {
      const auto begin = std::chrono::steady_clock::now();
      std::int64_t step = 0;
      for (auto& batch : loader) {
        if (epoch > 0)
          pictures += batch.data.size(0);
        else if (++step % 8 == 0)
          memory = std::max(memory, pss_mb());
      }
      if (epoch > 0) seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
  });
  std::printf("%s\n", nlohmann::json{{"pictures_per_s", static_cast<double>(pictures) / seconds}, {"memory_mb", memory}}
                          .dump()
                          .c_str());
  return 0;
}
