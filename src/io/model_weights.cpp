#include "io/model_weights.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <nlohmann/json.hpp>

#include "io/checkpoint_error.h"
#include "io/file_bytes.h"
#include "io/json_text.h"
#include "io/model_source.h"
#include "io/scalar_types.h"
#include "nn/tensor_layout.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

using Json = nlohmann::ordered_json;

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

}  // namespace

std::string shard_name(const std::string& stem, std::size_t number, std::size_t count) {
  char numbers[48];
  std::snprintf(numbers, sizeof numbers, "-%05zu-of-%05zu.safetensors", number, count);
  return stem + numbers;
}

NamedTensors weights_of(const torch::nn::Module& module) {
  NamedTensors once;
  for (const Named& named : by_tensor(all_tensors(module))) once.emplace_back(named.names.front(), named.tensor);
  return once;
}

std::vector<NewFile> weight_files(const std::string& stem, const NamedTensors& weights, std::uint64_t max_shard_bytes,
                                  const std::string& directory) {
  if (max_shard_bytes == 0) throw ConfigError("max_shard_bytes is 0; use the size that a file may have");
  for (const auto& [name, tensor] : weights)
    if (tensor.layout() != at::kStrided)
      throw_checkpoint_error(
          directory, "tensor '" + name + "' is sparse, which files of weights cannot have; keep it beside the module");
  const auto shards = split(weights, max_shard_bytes);
  std::vector<NewFile> files;
  Json weight_map = Json::object();
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1 ? stem + ".safetensors" : shard_name(stem, i + 1, shards.size());
    for (const auto& [tensor_name, tensor] : shards[i]) {
      weight_map[tensor_name] = name;
      bytes += tensor.nbytes();
    }
    const std::map<std::string, std::string> metadata{{"format", "pt"}};
    check_safetensors(directory + "/" + name, shards[i], metadata);  // before anything is written
    files.push_back({name, [shard = shards[i], metadata, shown = directory + "/" + name](const WriteBytes& write) {
                       write_safetensors(write, shown, shard, metadata);
                     }});
  }
  if (shards.size() == 1) return files;
  const Json index{{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(weight_map)}};
  files.push_back({stem + ".safetensors.index.json",
                   [text = exact_json(index, directory + "/" + stem + ".safetensors.index.json", 2) +
                           "\n"](const WriteBytes& write) { write(text.data(), text.size()); }});
  return files;
}

// ---- reading

namespace {

void add_to(StoredWeights& stored, const std::string& file, NamedTensors tensors) {
  for (auto& [name, tensor] : tensors) {
    if (!stored.tensors.emplace(name, std::move(tensor)).second)
      throw_checkpoint_error(file, "tensor '" + name + "' is in another file too");
    stored.files[name] = file;
  }
}

// Whether both have equal numbers, of one type; NaN counts as equal to NaN.
bool same_numbers(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  if (x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0) return true;
  return at::logical_or(at::eq(x, y), at::logical_and(at::ne(x, x), at::ne(y, y))).all().item<bool>();
}

// Which of two tensors that were stored for one parameter of `type` to take: the more exact one; nothing when they
// differ by more than the other's type explains.
std::optional<at::Tensor> agreed(const at::Tensor& a, const at::Tensor& b, at::ScalarType type) {
  if (a.scalar_type() == b.scalar_type()) return same_numbers(a, b) ? std::optional(a) : std::nullopt;
  const auto widest = at::promote_types(a.scalar_type(), b.scalar_type());
  const bool is_b = b.scalar_type() == widest;
  if (is_b || a.scalar_type() == widest) {
    const at::Tensor &exact = is_b ? b : a, &other = is_b ? a : b;
    if (same_numbers(exact.to(other.scalar_type()), other)) return exact;
  }
  return same_numbers(a.to(type), b.to(type)) ? std::optional(a) : std::nullopt;
}

// Types are converted where numbers stay numbers: LibTorch makes none of bits and float4, and drops imaginary parts.
void check_converts(const std::string& file, const std::string& name, at::ScalarType from, at::ScalarType to) {
  if (from == to || (is_number(from) && is_number(to) && (at::isComplexType(to) || !at::isComplexType(from)))) return;
  throw_checkpoint_error(file, "tensor '" + name + "' has type " + at::toString(from) + ", which is not converted to " +
                                   at::toString(to) + ", as the model has it");
}

// Names that tensors are stored under, by the module's names for them.
struct StoredNames {
  std::map<std::string, std::vector<std::string>> by_name;
  std::vector<std::string> left;
};

StoredNames names_in(const StoredWeights& stored, const LoadModelOptions& options) {
  StoredNames names;
  for (const auto& [name, file] : stored.files) {
    const std::string renamed = options.rename ? options.rename(name) : name;
    if (renamed.empty())
      names.left.push_back(name);
    else
      names.by_name[renamed].push_back(name);
  }
  return names;
}

// All that is stored of a tensor, which may have several names.
std::vector<std::string> names_of(const Named& wanted, const StoredNames& names) {
  std::vector<std::string> all;
  for (const std::string& name : wanted.names)
    if (const auto found = names.by_name.find(name); found != names.by_name.end())
      all.insert(all.end(), found->second.begin(), found->second.end());
  return all;
}

// The one of them that has other sizes; null: none has.
const std::string* other_sizes(const StoredWeights& stored, const Named& wanted,
                               const std::vector<std::string>& names) {
  const auto found = std::find_if(names.begin(), names.end(), [&](const std::string& name) {
    return stored.tensors.at(name).sizes() != wanted.tensor.sizes();
  });
  return found == names.end() ? nullptr : &*found;
}

// What is stored of a tensor under `names`, which must agree.
at::Tensor find(const StoredWeights& stored, const Named& wanted, const std::vector<std::string>& names) {
  at::Tensor tensor;
  std::string before;
  for (const std::string& name : names) {
    const at::Tensor& found = stored.tensors.at(name);
    check_converts(stored.files.at(name), name, found.scalar_type(), wanted.tensor.scalar_type());
    if (!tensor.defined()) {
      tensor = found;
      before = name;
      continue;
    }
    const auto both = agreed(tensor, found, wanted.tensor.scalar_type());
    if (!both)
      throw_checkpoint_error(stored.files.at(name), "tensor '" + name + "' (" + at::toString(found.scalar_type()) +
                                                        ") is not equal to '" + before + "' (" +
                                                        at::toString(tensor.scalar_type()) +
                                                        "), which it is tied to in the model");
    tensor = *both;
  }
  return tensor;
}

// Throws at the first thing that does not fit.
void check_strictly(const StoredWeights& stored, const LoadModelReport& report) {
  if (!report.unknown.empty())
    throw_checkpoint_error(stored.files.at(report.unknown.front()),
                           "tensor '" + report.unknown.front() + "' is none of the model's");
  if (!report.other_sizes.empty()) {
    const OtherSizes& other = report.other_sizes.front();
    throw_checkpoint_error(stored.files.at(other.stored),
                           "tensor '" + other.stored + "' has sizes " + c10::str(at::IntArrayRef(other.stored_sizes)) +
                               ", the model needs " + c10::str(at::IntArrayRef(other.sizes)));
  }
  if (!report.missing.empty())
    throw_checkpoint_error(stored.directory, "has no tensor '" + report.missing.front() + "', which the model needs");
}

// What names and sizes say.
LoadModelReport compare(const StoredWeights& stored, const std::vector<Named>& wanted, const StoredNames& names) {
  LoadModelReport report;
  report.left = names.left;
  std::set<std::string> known;
  for (const Named& named : wanted) {
    known.insert(named.names.begin(), named.names.end());
    const auto its = names_of(named, names);
    const std::string& name = named.names.front();
    if (its.empty())
      report.missing.push_back(name);
    else if (const std::string* other = other_sizes(stored, named, its))
      report.other_sizes.push_back({name, *other, named.tensor.sizes().vec(), stored.tensors.at(*other).sizes().vec()});
    else
      report.taken.push_back(name);
  }
  for (const auto& [name, its] : names.by_name)
    if (!known.contains(name)) report.unknown.insert(report.unknown.end(), its.begin(), its.end());
  return report;
}

}  // namespace

StoredWeights read_weights(CheckpointSource& source, const std::string& stem) {
  const ModelSource model(source, stem);
  StoredWeights stored{.directory = source.directory(), .tensors = {}, .files = {}};
  for (const std::string& name : model.files()) {
    const std::string shown = source.shown(name);
    const at::Tensor file = source.load(name);
    add_to(stored, shown, model.of_torch_save() ? pickled_tensors_in(file, shown) : safetensors_in(file, shown));
  }
  model.check_places([&](const std::string& name) {
    const auto found = stored.files.find(name);
    return found == stored.files.end() ? std::string() : found->second;
  });
  return stored;
}

StoredWeights read_weights_at(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    CheckpointSource source(path);
    StoredWeights stored = read_weights(source, "model");
    source.verify();
    return stored;
  }
  StoredWeights stored{.directory = path, .tensors = {}, .files = {}};
  const std::filesystem::path followed = std::filesystem::canonical(path, error);
  const std::string file = error ? path : followed.string();
  if (!error && is_pickle_file(file, path))
    add_to(stored, path, nested_tensors_in(load_bytes(file, path), path));
  else
    add_to(stored, path, load_safetensors(file, path));
  return stored;
}

LoadPlan plan_load(const StoredWeights& stored, torch::nn::Module& module, const LoadModelOptions& options,
                   const std::function<bool(const at::Tensor&)>& wanted_here) {
  const auto wanted = by_tensor(all_tensors(module));
  const StoredNames names = names_in(stored, options);
  LoadModelReport report = compare(stored, wanted, names);
  if (options.strict) check_strictly(stored, report);
  const std::set<std::string> taken(report.taken.begin(), report.taken.end());
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;  // to, from
  for (const Named& named : wanted) {
    if (!taken.contains(named.names.front())) continue;
    const at::Tensor found = find(stored, named, names_of(named, names));
    const at::Tensor once = nn::without_repetitions(found, named.tensor);
    if (once.numel() != found.numel() && !same_numbers(once.expand_as(found), found))
      throw_checkpoint_error(stored.directory,
                             "tensor '" + named.names.front() + "' has other numbers where the model's is expanded");
    if (!wanted_here || wanted_here(named.tensor))
      copies.emplace_back(nn::without_repetitions(named.tensor, named.tensor), once);
  }
  return {std::move(report), [copies = std::move(copies)] {
            const at::NoGradGuard no_grad;
            for (auto [to, from] : copies) to.copy_(from);
          }};
}

std::function<void()> prepare_load(const StoredWeights& stored, torch::nn::Module& module,
                                   const std::function<bool(const at::Tensor&)>& wanted_here) {
  return plan_load(stored, module, {}, wanted_here).copy;
}

}  // namespace tandem::io
