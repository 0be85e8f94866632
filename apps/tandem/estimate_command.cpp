// tandem estimate: the memory that a training needs.
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "command.h"
#include "estimate.h"
#include "io/json_text.h"
#include "stored_tensors.h"
#include "tandem/core/error.h"
#include "train/model_flags.h"
#include "train/net_sizes.h"

namespace tandem_tool {
namespace {

const std::map<std::string, Update> kUpdates{
    {"sgd", Update::sgd}, {"momentum", Update::momentum}, {"adam", Update::adam}, {"adamw", Update::adamw}};
const std::map<std::string, tandem::Precision> kPrecisions{
    {"no", tandem::Precision::no}, {"bf16", tandem::Precision::bf16}, {"fp16", tandem::Precision::fp16}};
const std::map<std::string, tandem::Sharding> kShardings{{"none", tandem::Sharding::none},
                                                         {"optimizer", tandem::Sharding::optimizer},
                                                         {"automatic", tandem::Sharding::automatic}};

struct EstimateOptions {
  std::string file, optimizer = "adamw", precision = "no", sharding = "automatic";
  train::ModelFlags model;
  std::optional<std::int64_t> image_size, channels, classes;  // of pictures in folders; none: MNIST
  std::optional<int> cpu, gpus;
  double momentum = 0;
  std::int64_t batch_size = 64;
  bool json = false;
};

constexpr double kMega = 1e6;

void take_file(Training& training, const std::string& path) {
  const StoredTensors stored(path);
  std::set<std::pair<const void*, std::vector<std::int64_t>>> tied;  // of torch.save, which has them under each name
  for (const auto& entry : stored.entries()) {
    if (entry.mapped.defined() && !tied.emplace(entry.mapped.const_data_ptr(), entry.tensor.shape).second) continue;
    double elements = 1;
    for (const std::int64_t size : entry.tensor.shape) elements *= static_cast<double>(size);
    training.weights += entry.tensor.is_floating() ? 4 * elements : static_cast<double>(entry.tensor.bytes());
  }
}

// Of pictures as train takes them, of ImageNet's classes where nothing is said.
std::optional<tandem::models::ImageShape> images_of(const EstimateOptions& options) {
  if (!options.image_size && !options.channels && !options.classes) return {};
  return tandem::models::ImageShape{.channels = options.channels.value_or(3),
                                    .size = options.image_size.value_or(224),
                                    .classes = options.classes.value_or(1000)};
}

void take_model(Training& training, const EstimateOptions& options) {
  const train::NetSizes sizes = train::sizes_of(train::read_model_flags(options.model), images_of(options));
  training.weights = 4 * static_cast<double>(sizes.parameters);
  training.training_sample = sizes.training_bytes;
  // Of a batch like training's, each tensor has the size of one that training has kept.
  training.evaluation_batch = sizes.judged == options.batch_size ? 0 : sizes.evaluation_bytes;
  training.data = sizes.data_bytes;
}

Training training_of(const EstimateOptions& options) {
  Training training;
  if (options.file.empty())
    take_model(training, options);
  else
    take_file(training, options.file);
  training.gpu = options.gpus.has_value();
  training.ranks = training.gpu ? *options.gpus : options.cpu.value_or(tandem::default_cpu_ranks());
  training.batch = options.batch_size;
  training.update = kUpdates.at(options.optimizer);
  if (training.update == Update::sgd && options.momentum > 0) training.update = Update::momentum;
  training.precision = kPrecisions.at(options.precision);
  training.sharding = kShardings.at(options.sharding);
  return training;
}

nlohmann::ordered_json to_json(const Training& training, const std::vector<MemoryPart>& parts) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const MemoryPart& part : parts)
    list.push_back({{"name", part.name}, {"peak_mb", part.peak / kMega}, {"later_mb", part.later / kMega}});
  return {{"of", training.gpu ? "each GPU" : "the process"},
          {"ranks", training.ranks},
          {"parameters", training.weights / 4},
          {"parts", list},
          {"peak_mb", peak_of(parts) / kMega},
          {"later_mb", later_of(parts) / kMega}};
}

void print(const EstimateOptions& options, const Training& training, const std::vector<MemoryPart>& parts) {
  std::printf("%.4g million parameters, %d %s rank%s; MB (10^6 bytes) of %s\n", training.weights / 4 / kMega,
              training.ranks, training.gpu ? "GPU" : "CPU", training.ranks == 1 ? "" : "s",
              training.gpu ? "each GPU" : "the process");
  std::printf("%-30s %12s %12s\n", "", "at the peak", "later");
  for (const MemoryPart& part : parts)
    if (part.peak > 0 || part.later > 0)
      std::printf("%-30s %12.1f %12.1f\n", part.name.c_str(), part.peak / kMega, part.later / kMega);
  std::printf("%-30s %12.1f %12.1f\n", "together", peak_of(parts) / kMega, later_of(parts) / kMega);
  if (!options.file.empty()) std::printf("without activations and data, which a file of weights does not tell\n");
  if (training.gpu) std::printf("without what CUDA and NCCL need themselves; not measured\n");
}

int show_estimate(const CLI::App& flags, const EstimateOptions& options) {
  if (options.file.empty()) train::check_flags_of_models(flags, options.model.model);
  const Training training = training_of(options);
  const auto parts = estimate(training);
  if (options.json)
    std::printf("%s\n", tandem::io::shown_json(to_json(training, parts)).c_str());
  else
    print(options, training, parts);
  return apps::kDone;
}

}  // namespace

void add_estimate(CLI::App& tandem, Commands& commands) {
  const auto options = std::make_shared<EstimateOptions>();
  auto* estimate = tandem.add_subcommand("estimate", "Estimates the memory that a training needs, by parts.");
  auto* file = estimate
                   ->add_option("file", options->file,
                                "a file of weights or a directory of them, of which only the headers are read; "
                                "without one, a model of train's")
                   ->type_name("FILE");
  train::add_model_flags(*estimate, options->model)->excludes(file);
  const auto positive = CLI::Range(std::int64_t{1}, std::int64_t{1'000'000});
  const char* const of_pictures = " (default: as MNIST's; of pictures ";
  estimate->add_option("--image-size", options->image_size, "pixels of each side" + std::string(of_pictures) + "224)")
      ->check(positive);
  estimate
      ->add_option("--channels", options->channels,
                   "3: coloured pictures, 1: grey ones" + std::string(of_pictures) + "3)")
      ->check(positive);
  estimate->add_option("--classes", options->classes, "of the pictures" + std::string(of_pictures) + "1000)")
      ->check(positive);
  auto* cpu = estimate->add_option("--cpu", options->cpu, "N ranks on the CPU (default: as many as train takes)")
                  ->check(CLI::Range(1, 1024));
  estimate->add_option("--gpus", options->gpus, "N GPUs, a rank each")->check(CLI::Range(1, 1024))->excludes(cpu);
  estimate->add_option("--batch-size", options->batch_size, "samples of a rank's batch")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000'000}))
      ->capture_default_str();
  estimate->add_option("--optimizer", options->optimizer, "how to update")
      ->check(CLI::IsMember(kUpdates))
      ->capture_default_str();
  estimate->add_option("--momentum", options->momentum, "of sgd")->check(CLI::Range(0.0, 1.0))->capture_default_str();
  estimate->add_option("--mixed-precision", options->precision, "what the model computes in")
      ->check(CLI::IsMember(kPrecisions))
      ->capture_default_str();
  estimate->add_option("--sharding", options->sharding, "what CPU ranks have in common, as LaunchConfig::sharding")
      ->check(CLI::IsMember(kShardings))
      ->capture_default_str();
  estimate->add_flag("--json", options->json, "print JSON");
  estimate->footer(
      "Examples:\n  tandem estimate --model gpt --width 512 --layers 8 --cpu 4\n"
      "  tandem estimate llama/ --optimizer adamw --mixed-precision bf16 --gpus 8");
  commands.push_back({estimate, [estimate, options] { return show_estimate(*estimate, *options); }});
}

}  // namespace tandem_tool
