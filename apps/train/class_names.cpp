#include "class_names.h"

#include <filesystem>

#include <nlohmann/json.hpp>

#include "io/json_text.h"
#include "io/output_file.h"
#include "model_flags.h"
#include "warn.h"

namespace train {
namespace {

// Empty where the weights go to a stream.
std::string classes_path(const std::string& weights) {
  if (tandem::io::OutputFile(weights).is_stream()) return {};
  return (std::filesystem::path(tandem::io::follow_links(weights)).parent_path() / "classes.json").string();
}

}  // namespace

std::string describe_classes(const Options& options, const Task& task) {
  const auto classes = task.classes();
  if (classes.empty()) return {};
  nlohmann::ordered_json description{{"format", "tandem-classes-1"}, {"model", name_of(options.model)}};
  if (options.model == ModelKind::mlp) description["hidden"] = options.hidden;
  description["classes"] = classes;
  if (const auto pictures = task.picture_format()) {
    description["channels"] = pictures->channels;
    description["image_size"] = pictures->size;
    description["resize"] = pictures->resize;
    description["mean"] = pictures->normalization.mean;
    description["std"] = pictures->normalization.deviation;
  }
  return tandem::io::shown_json(description, 2) + '\n';
}

std::map<std::string, std::string> metadata_of_weights(const Options& options, const std::string& description) {
  std::map<std::string, std::string> metadata{{"format", "pt"}, {"model", name_of(options.model)}};
  if (!description.empty()) metadata.emplace("classes", description);
  return metadata;
}

void try_to_write_classes(const tandem::Accelerator& accelerator, const std::string& weights,
                          const std::string& description) {
  const std::string path = description.empty() ? std::string() : classes_path(weights);
  if (path.empty()) return;
  try {
    tandem::io::OutputFile(path).write(
        [&](const tandem::io::WriteBytes& write) { write(description.data(), description.size()); });
  } catch (const tandem::CheckpointError& error) {
    warn(accelerator, std::string("names of the classes: ") + error.what());
  }
}

}  // namespace train
