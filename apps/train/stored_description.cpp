#include "stored_description.h"

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "io/file_bytes.h"
#include "io/json_text.h"
#include "io/output_file.h"
#include "io/read_file.h"
#include "io/safetensors_header.h"
#include "resumed_flags.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_series.h"

namespace train {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMostOfDescription = 1 << 26;  // bytes

std::optional<StoredDescription> description_within(const std::string& file) {
  std::error_code error;
  const std::string followed = tandem::io::follow_links(file);
  if (!fs::is_regular_file(followed, error) || tandem::io::is_pickle_file(followed, file)) return {};
  const auto metadata = tandem::io::read_safetensors_header(followed, file).metadata;
  const auto text_of = [&](const char* name) {
    const auto found = metadata.find(name);
    return found == metadata.end() ? std::string() : found->second;
  };
  StoredDescription description{.file = file, .model = text_of("model"), .text = text_of("classes")};
  if (description.model.empty() && description.text.empty()) return {};
  return description;
}

std::optional<StoredDescription> description_of_checkpoint(const std::string& directory) {
  const auto state = state_of_checkpoint(directory, {});
  if (!state) return {};
  if (state->description.empty() && !state->classes.empty()) return {};  // of a version that did not say it
  StoredDescription description{.file = directory, .model = {}, .text = state->description};
  for (const auto& [name, value] : state->flags)
    if (const auto* const model = std::get_if<std::string>(&value); model && name == "model")
      description.model = *model;
  if (description.model.empty()) return {};
  return description;
}

}  // namespace

std::optional<StoredDescription> find_description(const std::string& path) {
  std::error_code error;
  const fs::path followed = tandem::io::follow_links(path);
  const bool is_directory = fs::is_directory(followed, error);
  if (is_directory)
    if (auto checkpoint = description_of_checkpoint(path)) return checkpoint;
  if (auto within = description_within(is_directory ? path + "/model.safetensors" : path)) return within;
  const std::string beside = ((is_directory ? followed : followed.parent_path()) / "classes.json").string();
  if (!fs::exists(beside, error)) return {};
  return StoredDescription{
      .file = beside, .model = {}, .text = tandem::io::read_text(beside, beside, kMostOfDescription)};
}

std::optional<std::vector<std::string>> stored_classes(const std::string& path) {
  if (const auto state = state_of_checkpoint(path, {}); state && !state->classes.empty()) return state->classes;
  try {
    const auto description = find_description(path);
    if (!description) return {};
    if (description->text.empty()) return std::vector<std::string>{};
    return tandem::io::parse_json(description->text).at("classes").get<std::vector<std::string>>();
  } catch (const tandem::CheckpointError&) {
    return {};
  } catch (const nlohmann::json::exception&) {
    return {};
  }
}

void check_is_one_checkpoint(const std::string& flag, const std::string& path) {
  std::error_code error;
  const auto all = tandem::io::list_checkpoints(path);
  if (all.empty() || fs::exists(path + "/manifest.json", error)) return;
  throw tandem::ConfigError(flag + " " + path + ": is a folder of checkpoints; name one of them, such as " +
                            all.back());
}

}  // namespace train
