#include "checkpoint_diff.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>

#include "checkpoint/state_file.h"
#include "io/checkpoint_error.h"
#include "io/file_bytes.h"
#include "io/model_source.h"
#include "io/scalar_types.h"
#include "tandem/core/error.h"

namespace tandem_tool {

namespace fs = std::filesystem;
namespace io = tandem::io;
using Json = nlohmann::json;

namespace {

std::string type_name(const io::StoredTensor& tensor) {
  const std::string name = tensor.type ? io::python_name(*tensor.type) : std::string();
  return name.empty() ? tensor.dtype : name;
}

void compare_stored(Partings& partings, const StoredTensors& first, const StoredTensors::Entry& a,
                    const StoredTensors& second, const StoredTensors::Entry& b) {
  const std::string type = type_name(a.tensor), other_type = type_name(b.tensor);
  if (type != other_type)
    return partings.add({.kind = Parting::Kind::type, .name = a.tensor.name, .first = type, .second = other_type});
  if (a.tensor.shape != b.tensor.shape)
    return partings.add({.kind = Parting::Kind::shape,
                         .name = a.tensor.name,
                         .first = c10::str(at::IntArrayRef(a.tensor.shape)),
                         .second = c10::str(at::IntArrayRef(b.tensor.shape))});
  compare_tensor_bytes(partings, a.tensor.name, first.read_bytes(a), second.read_bytes(b), a.tensor.type,
                       a.tensor.shape);
}

}  // namespace

std::int64_t compare_weights(Partings& partings, const StoredTensors& first, const StoredTensors& second) {
  std::int64_t compared = 0;
  for (const auto& entry : first.entries()) {
    const auto* const other = second.find(entry.tensor.name);
    partings.file = entry.file;
    if (!other) {
      partings.add({.kind = Parting::Kind::only_in_first, .name = entry.tensor.name});
      continue;
    }
    compare_stored(partings, first, entry, second, *other);
    ++compared;
  }
  for (const auto& entry : second.entries()) {
    partings.file = entry.file;
    if (!first.find(entry.tensor.name))
      partings.add({.kind = Parting::Kind::only_in_second, .name = entry.tensor.name});
  }
  partings.file.clear();
  return compared;
}

bool has_model(const io::CheckpointSource& source, const std::string& stem) {
  const std::array names{stem + ".safetensors", stem + ".safetensors.index.json", "pytorch_" + stem + ".bin",
                         "pytorch_" + stem + ".bin.index.json"};
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) { return source.has(name); });
}

namespace {

// A directory with the files of a state or of a model.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& path) : source_(path), names_(files_of(path)) {}

  const io::CheckpointSource& source() const { return source_; }

  // By the names of their stems, as "model_1".
  std::set<std::string> models() const {
    std::set<std::string> stems;
    for (std::size_t index = 0; has_model(source_, tandem::numbered("model", index)); ++index)
      stems.insert(tandem::numbered("model", index));
    return stems;
  }

  // Those that are in no model.
  std::set<std::string> other_files() const {
    std::set<std::string> others = names_;
    for (const std::string& stem : models()) {
      const io::ModelSource model(source_, stem);
      for (const std::string& file : model.files()) others.erase(file);
      others.erase(stem + ".safetensors.index.json");
      others.erase("pytorch_" + stem + ".bin.index.json");
    }
    return others;
  }

  at::Tensor bytes_of(const std::string& name) const {
    return io::load_bytes(source_.path_of(name), source_.shown(name), io::Links::follow);
  }

  bool has_pickle(const std::string& name) const {
    return io::is_pickle_file(source_.path_of(name), source_.shown(name));
  }

  // What is wrong with a file by the manifest's checksum; empty: nothing, or there is none.
  std::string damage_of(const std::string& name) const {
    if (!source_.reader() || !source_.has(name)) return {};
    try {
      source_.reader()->verify(name);
      return {};
    } catch (const tandem::CheckpointError& error) {
      return error.what();
    }
  }

 private:
  std::set<std::string> files_of(const std::string& path) const {
    std::set<std::string> names;
    if (source_.reader()) {
      const auto all = source_.reader()->names();
      return {all.begin(), all.end()};
    }
    std::error_code error;
    for (auto entry = fs::directory_iterator(path, error); !error && entry != fs::directory_iterator();
         entry.increment(error))
      if (std::error_code ignored; entry->is_regular_file(ignored)) names.insert(entry->path().filename().string());
    if (error) io::throw_checkpoint_error(path, "cannot be read: " + error.message());
    return names;
  }

  const io::CheckpointSource source_;
  const std::set<std::string> names_;
};

bool is_state(const std::string& name) {
  const std::array stems{"optimizer", "scheduler", "sampler", "scaler", "custom_checkpoint_"};
  return std::any_of(stems.begin(), stems.end(), [&](const char* stem) { return name.starts_with(stem); });
}

bool may_be_pickle(const std::string& name) {
  const std::array endings{".bin", ".pt", ".pth", ".pkl"};
  return std::any_of(endings.begin(), endings.end(), [&](const char* ending) { return name.ends_with(ending); });
}

// The names of an optimizer's parameters by their number, as its state has them.
std::map<std::int64_t, std::string> parameters_in(const c10::IValue& state) {
  std::map<std::int64_t, std::string> names;
  const auto at = [](const c10::IValue& dict, const char* name) {
    return dict.isGenericDict() && dict.toGenericDict().contains(name) ? dict.toGenericDict().at(name) : c10::IValue();
  };
  const c10::IValue groups = at(state, "param_groups");
  if (!groups.isList()) return names;
  for (const c10::IValue& group : groups.toListRef()) {
    const c10::IValue numbers = at(group, "params"), its_names = at(group, "param_names");
    if (!numbers.isList() || !its_names.isList()) continue;
    const auto all = numbers.toListRef(), all_names = its_names.toListRef();
    for (std::size_t i = 0; i < std::min(all.size(), all_names.size()); ++i)
      if (all[i].isInt() && all_names[i].isString()) names[all[i].toInt()] = all_names[i].toStringRef();
  }
  return names;
}

// Says whose state each is, in partings from `begin` on.
void name_parameters(Partings& partings, std::size_t begin, const c10::IValue& state) {
  constexpr std::string_view kState = "state[";
  const auto names = parameters_in(state);
  for (std::size_t i = begin; i < partings.all().size(); ++i) {
    Parting& parting = partings.all()[i];
    std::int64_t number = -1;
    if (!parting.name.starts_with(kState)) continue;
    std::from_chars(parting.name.data() + kState.size(), parting.name.data() + parting.name.size(), number);
    const auto name = names.find(number);
    if (name != names.end()) parting.parameter = name->second;
  }
}

}  // namespace

bool names_the_machine(const std::string& flag) {
  static const std::set<std::string> all{
      "cpu",          "gpus",      "devices",        "transport",    "config",
      "data-dir",     "data-file", "val-file",       "init-weights", "weights-prefix",
      "save-weights", "log-json",  "checkpoint-dir", "save-every",   "total-limit",
      "resume",       "profile",   "profile-steps",  "nvtx-steps",   "log-with",
      "project-dir",  "report",    "log-every",      "quiet",        "expandable-segments",
      "no-progress"};
  return all.contains(flag);
}

void compare_pickles(Partings& partings, const at::Tensor& first, const std::string& shown, const at::Tensor& second,
                     const std::string& other_shown, bool everything) {
  const std::size_t before = partings.all().size();
  const c10::IValue state = io::pickle_in(first, shown);
  const LeavesOut leaves_out = [&](const std::string& within, const std::string& name) {
    return !everything && within == "flags" && names_the_machine(name);
  };
  compare_values(partings, state, io::pickle_in(second, other_shown), leaves_out);
  name_parameters(partings, before, state);
  for (std::size_t i = before; i < partings.all().size(); ++i)
    partings.all()[i].setting = partings.all()[i].name.starts_with("flags.");
}

Json json_in(const at::Tensor& file, const std::string& shown) {
  constexpr std::uint64_t kMostJsonBytes = 256 << 20;
  if (file.nbytes() > kMostJsonBytes)
    io::throw_checkpoint_error(shown, "is too long: " + std::to_string(file.nbytes()) + " bytes");
  Json json = io::parse_json({static_cast<const char*>(file.const_data_ptr()), file.nbytes()});
  if (json.is_discarded()) io::throw_checkpoint_error(shown, "is no JSON, or damaged");
  return json;
}

namespace {

// A pair of checkpoints.
class CheckpointComparison {
 public:
  CheckpointComparison(Partings& partings, std::vector<std::string>& notes, const std::string& first,
                       const std::string& second, bool everything)
      : partings_(partings), notes_(notes), first_(first), second_(second), everything_(everything) {}

  std::int64_t compare() {
    const std::size_t before = partings_.all().size();
    std::int64_t compared = 0;
    each(first_.models(), second_.models(), [&](const std::string& stem) {
      compare_weights(partings_, StoredTensors(first_.source().directory(), stem),
                      StoredTensors(second_.source().directory(), stem));
      ++compared;
    });
    each(first_.other_files(), second_.other_files(), [&](const std::string& name) {
      partings_.file = name;
      compare_files(name);
      ++compared;
    });
    partings_.file.clear();
    note_damage(before);
    return compared;
  }

 private:
  template <class Compare>
  void each(const std::set<std::string>& first, const std::set<std::string>& second, const Compare& compare) {
    for (const std::string& name : first) {
      partings_.file = name;
      second.contains(name) ? compare(name) : partings_.add({.kind = Parting::Kind::only_in_first});
    }
    for (const std::string& name : second) {
      partings_.file = name;
      if (!first.contains(name)) partings_.add({.kind = Parting::Kind::only_in_second});
    }
  }

  void compare_files(const std::string& name) {
    const std::string shown = first_.source().shown(name), other_shown = second_.source().shown(name);
    if (name.ends_with(".safetensors")) {
      compare_weights(partings_, StoredTensors(first_.source().path_of(name)),
                      StoredTensors(second_.source().path_of(name)));
      return;
    }
    const at::Tensor first = first_.bytes_of(name), second = second_.bytes_of(name);
    const bool pickled = is_state(name) || (may_be_pickle(name) && first_.has_pickle(name) && second_.has_pickle(name));
    if (may_be_pickle(name) && pickled)
      compare_pickles(partings_, first, shown, second, other_shown, everything_);
    else if (name.ends_with(".json"))
      compare_json(partings_, json_in(first, shown), json_in(second, other_shown), {});
    else
      compare_contents(partings_, first, second);
  }

  // A byte that flipped on a disk is no difference of the runs.
  void note_damage(std::size_t begin) {
    std::set<std::string> files;
    for (std::size_t i = begin; i < partings_.all().size(); ++i) files.insert(partings_.all()[i].file);
    for (const std::string& file : files)
      for (const Checkpoint* one : {&first_, &second_})
        if (const std::string damage = one->damage_of(file); !damage.empty()) notes_.push_back(damage);
  }

  Partings& partings_;
  std::vector<std::string>& notes_;
  const Checkpoint first_, second_;
  const bool everything_;
};

}  // namespace

std::int64_t compare_checkpoints(Partings& partings, std::vector<std::string>& notes, const std::string& first,
                                 const std::string& second, bool everything) {
  return CheckpointComparison(partings, notes, first, second, everything).compare();
}

}  // namespace tandem_tool
