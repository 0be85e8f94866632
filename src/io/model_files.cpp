#include "tandem/io/model_files.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <nlohmann/json.hpp>

#include "io/read_file.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_directory.h"

namespace tandem::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

[[noreturn]] void fail(const std::string& path, const std::string& problem) {
  throw CheckpointError(path + ": " + problem);
}

// With every name; tied weights have several.
NamedTensors all_tensors(const torch::nn::Module& module) {
  NamedTensors tensors;
  for (const auto& item : module.named_parameters()) tensors.emplace_back(item.key(), item.value());
  for (const auto& item : module.named_buffers()) tensors.emplace_back(item.key(), item.value());
  std::erase_if(tensors, [](const auto& named) { return !named.second.defined(); });
  return tensors;
}

// A tensor with its names, the first one first.
struct Named {
  at::Tensor tensor;
  std::vector<std::string> names;
};

std::vector<Named> by_tensor(const NamedTensors& tensors) {
  std::vector<Named> all;
  for (const auto& [name, tensor] : tensors) {
    const auto known =
        std::find_if(all.begin(), all.end(), [&its = tensor](const Named& named) { return named.tensor.is_same(its); });
    if (known == all.end())
      all.push_back({tensor, {name}});
    else
      known->names.push_back(name);
  }
  return all;
}

NamedTensors each_once(const NamedTensors& tensors) {
  NamedTensors once;
  for (const Named& named : by_tensor(tensors)) once.emplace_back(named.names.front(), named.tensor);
  return once;
}

// In their order, each part as large as it may be.
std::vector<NamedTensors> split(const NamedTensors& tensors, std::uint64_t most_bytes) {
  std::vector<NamedTensors> shards(1);
  std::uint64_t bytes = 0;
  for (const auto& named : tensors) {
    const std::uint64_t more = named.second.nbytes();
    if (!shards.back().empty() && bytes + more > most_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(named);
    bytes += more;
  }
  return shards;
}

std::string shard_name(std::size_t number, std::size_t count) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number, count);
  return name;
}

nlohmann::json parse_index(const std::string& path, const std::string& shown) {
  constexpr std::uint64_t kMostBytes = 100'000'000;
  const auto index = parse_json(read_text(path, shown, kMostBytes));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    fail(shown, "has no weight_map");
  for (const auto& [name, value] : index["weight_map"].items())
    if (!value.is_string() || value.get<std::string>().find('/') != std::string::npos)
      fail(shown, "weight_map has no file's name for '" + name + "'");
  return index["weight_map"];
}

// Tensors by name, and the file that each is in, as it is shown.
struct Stored {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> files;
};

// Where the files of a directory are read: what is verified cannot be replaced by others meanwhile.
class Source {
 public:
  explicit Source(const std::string& directory) : directory_(directory), open_(directory) {
    std::error_code error;
    const auto status = fs::symlink_status(open_ / "manifest.json", error);
    if (status.type() == fs::file_type::not_found) return;  // Python's
    reader_.emplace(directory);
    reader_->verify();
  }

  bool has(const std::string& name) const {
    std::error_code error;
    return reader_ ? reader_->has(name) : fs::exists(open_ / name, error);
  }
  std::string path_of(const std::string& name) const { return reader_ ? reader_->path_of(name) : open_ / name; }
  std::string shown(const std::string& name) const { return directory_ + "/" + name; }

  void add_to(Stored& stored, const std::string& name) const {
    for (auto& [tensor_name, tensor] : load_safetensors(path_of(name), shown(name))) {
      if (!stored.tensors.emplace(tensor_name, tensor).second)
        fail(shown(name), "tensor '" + tensor_name + "' is in another file too");
      stored.files[tensor_name] = shown(name);
    }
  }

 private:
  const std::string directory_;
  const OpenDirectory open_;
  std::optional<CheckpointReader> reader_;  // nothing: there is no manifest
};

Stored read_all(const std::string& directory) {
  const Source source(directory);
  Stored stored;
  if (source.has(kSingle) || !source.has(kIndex)) {
    if (!source.has(kSingle)) fail(source.shown(kSingle), "does not exist");
    source.add_to(stored, kSingle);
    return stored;
  }
  const auto weight_map = parse_index(source.path_of(kIndex), source.shown(kIndex));
  std::set<std::string> files;
  for (const auto& [name, file] : weight_map.items()) files.insert(file.get<std::string>());
  for (const std::string& file : files) source.add_to(stored, file);
  for (const auto& [name, file] : weight_map.items())
    if (const auto found = stored.files.find(name);
        found == stored.files.end() || found->second != source.shown(file.get<std::string>()))
      fail(source.shown(kIndex), "tensor '" + name + "' is not in " + file.get<std::string>());
  return stored;
}

// What is stored of a tensor, under any of its names; with several they must be equal.
at::Tensor find(const std::string& directory, const Stored& stored, const Named& wanted) {
  at::Tensor tensor;
  for (const std::string& name : wanted.names) {
    const auto found = stored.tensors.find(name);
    if (found == stored.tensors.end()) continue;
    if (found->second.sizes() != wanted.tensor.sizes())
      fail(stored.files.at(name), "tensor '" + name + "' has sizes " + c10::str(found->second.sizes()) +
                                      ", the model needs " + c10::str(wanted.tensor.sizes()));
    if (tensor.defined() && !at::equal(tensor, found->second))
      fail(stored.files.at(name),
           "tensor '" + name + "' is not equal to '" + wanted.names.front() + "', which it is tied to in the model");
    tensor = found->second;
  }
  if (!tensor.defined()) fail(directory, "has no tensor '" + wanted.names.front() + "', which the model needs");
  return tensor;
}

void check_no_others(const Stored& stored, const NamedTensors& wanted) {
  std::set<std::string> names;
  for (const auto& named : wanted) names.insert(named.first);
  for (const auto& [name, file] : stored.files)
    if (!names.contains(name)) fail(file, "tensor '" + name + "' is none of the model's");
}

}  // namespace

void save_model(const std::string& directory, const torch::nn::Module& module, const ModelFileOptions& options) {
  if (options.max_shard_bytes == 0) throw ConfigError("max_shard_bytes is 0; use the size that a file may have");
  const auto shards = split(each_once(all_tensors(module)), options.max_shard_bytes);
  CheckpointWriter writer(directory);
  Json weight_map = Json::object();
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1 ? kSingle : shard_name(i + 1, shards.size());
    writer.add(name, [&](const WriteBytes& write) {
      write_safetensors(write, directory + "/" + name, shards[i], {{"format", "pt"}});
    });
    for (const auto& [tensor_name, tensor] : shards[i]) {
      weight_map[tensor_name] = name;
      bytes += tensor.nbytes();
    }
  }
  const Json index{{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(weight_map)}};
  if (shards.size() > 1) writer.add(kIndex, index.dump(2) + "\n");
  writer.commit({{"kind", "model"}});
}

void load_model(const std::string& directory, torch::nn::Module& module) {
  const Stored stored = read_all(directory);
  const NamedTensors wanted = all_tensors(module);
  const auto tensors = by_tensor(wanted);
  std::vector<at::Tensor> values;
  for (const Named& named : tensors) values.push_back(find(directory, stored, named));
  check_no_others(stored, wanted);
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < tensors.size(); ++i) at::Tensor(tensors[i].tensor).copy_(values[i]);
}

}  // namespace tandem::io
