#include "tandem/io/model_files.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <nlohmann/json.hpp>

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

NamedTensors each_once(const NamedTensors& tensors) {
  NamedTensors once;
  for (const auto& named : tensors)
    if (std::none_of(once.begin(), once.end(), [&](const auto& known) { return known.second.is_same(named.second); }))
      once.push_back(named);
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

Json parse_index(const std::string& path) {
  std::ifstream file(path);
  const Json index = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    fail(path, "has no weight_map");
  for (const auto& [name, value] : index["weight_map"].items())
    if (!value.is_string() || value.get<std::string>().find('/') != std::string::npos)
      fail(path, "weight_map has no file's name for '" + name + "'");
  return index["weight_map"];
}

// Tensors by name, and the file that each is in.
struct Stored {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> files;
};

void add_file(Stored& stored, const std::string& path) {
  for (auto& [name, tensor] : load_safetensors(path)) {
    if (!stored.tensors.emplace(name, tensor).second) fail(path, "tensor '" + name + "' is in another file too");
    stored.files[name] = path;
  }
}

Stored read_all(const std::string& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error))
    fail(directory, fs::exists(directory, error) ? "is no directory" : "does not exist");
  if (fs::exists(directory + "/manifest.json", error)) CheckpointReader(directory).verify();
  Stored stored;
  const std::string index_path = directory + "/" + kIndex;
  if (!fs::exists(index_path, error)) {
    add_file(stored, directory + "/" + kSingle);
    return stored;
  }
  const Json weight_map = parse_index(index_path);
  std::set<std::string> files;
  for (const auto& [name, file] : weight_map.items()) files.insert(file.get<std::string>());
  for (const std::string& file : files) add_file(stored, directory + "/" + file);
  for (const auto& [name, file] : weight_map.items())
    if (const auto found = stored.files.find(name);
        found == stored.files.end() || found->second != directory + "/" + file.get<std::string>())
      fail(index_path, "tensor '" + name + "' is not in " + file.get<std::string>());
  return stored;
}

void check_fits(const std::string& directory, const Stored& stored, const NamedTensors& wanted) {
  for (const auto& [name, tensor] : each_once(wanted)) {
    const auto found = stored.tensors.find(name);
    if (found == stored.tensors.end()) fail(directory, "has no tensor '" + name + "', which the model needs");
    if (found->second.sizes() != tensor.sizes())
      fail(stored.files.at(name), "tensor '" + name + "' has sizes " + c10::str(found->second.sizes()) +
                                      ", the model needs " + c10::str(tensor.sizes()));
  }
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
  check_fits(directory, stored, wanted);
  const at::NoGradGuard no_grad;
  for (auto [name, tensor] : each_once(wanted)) tensor.copy_(stored.tensors.at(name));
}

}  // namespace tandem::io
