#include "io/model_source.h"

#include <set>

#include <nlohmann/json.hpp>

#include "io/checkpoint_error.h"
#include "io/read_file.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {}  // namespace

ModelSource::ModelSource(const CheckpointSource& source, const std::string& stem) : source_(source) {
  if (find(stem + ".safetensors")) return;
  of_torch_save_ = find("pytorch_" + stem + ".bin");
  if (!of_torch_save_) throw_checkpoint_error(source_.shown(stem + ".safetensors"), "does not exist");
}

bool ModelSource::find(const std::string& single) {
  if (source_.has(single)) {
    files_ = {single};
    return true;
  }
  if (!source_.has(single + ".index.json")) return false;
  index_ = single + ".index.json";
  read_index();
  return true;
}

void ModelSource::read_index() {
  constexpr std::uint64_t kMostBytes = 100'000'000;
  const std::string shown = source_.shown(index_);
  const auto index = parse_json(read_text(source_.path_of(index_), shown, kMostBytes));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw_checkpoint_error(shown, "has no weight_map");
  std::set<std::string> files;
  for (const auto& [name, value] : index["weight_map"].items()) {
    if (!value.is_string() || value.get<std::string>().find('/') != std::string::npos)
      throw_checkpoint_error(shown, "weight_map has no file's name for '" + name + "'");
    places_[name] = value.get<std::string>();
    files.insert(places_[name]);
  }
  files_.assign(files.begin(), files.end());
}

void ModelSource::check_places(const std::function<std::string(const std::string&)>& file_of) const {
  for (const auto& [name, file] : places_)
    if (file_of(name) != source_.shown(file))
      throw_checkpoint_error(source_.shown(index_), "tensor '" + name + "' is not in " + file);
}

}  // namespace tandem::io
