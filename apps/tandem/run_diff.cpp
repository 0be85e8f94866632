#include "run_diff.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string_view>
#include <utility>

#include "checkpoint/state_file.h"
#include "io/checkpoint_source.h"
#include "io/file_bytes.h"
#include "io/model_source.h"
#include "io/read_file.h"
#include "io/scalar_types.h"
#include "stored_tensors.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_series.h"

namespace tandem_tool {
namespace {

namespace fs = std::filesystem;
namespace io = tandem::io;
using Json = nlohmann::json;

constexpr std::uint64_t kMostJsonBytes = 256 << 20;

[[noreturn]] void fail(const std::string& path, const std::string& problem) {
  throw tandem::CheckpointError(path + ": " + problem);
}

// ---- weights

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

// Returns how many are in both.
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

// ---- checkpoints

bool has_model(const io::CheckpointSource& source, const std::string& stem) {
  const std::array names{stem + ".safetensors", stem + ".safetensors.index.json", "pytorch_" + stem + ".bin",
                         "pytorch_" + stem + ".bin.index.json"};
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) { return source.has(name); });
}

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
    if (error) fail(path, "cannot be read: " + error.message());
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
  if (file.nbytes() > kMostJsonBytes) fail(shown, "is too long: " + std::to_string(file.nbytes()) + " bytes");
  Json json = io::parse_json({static_cast<const char*>(file.const_data_ptr()), file.nbytes()});
  if (json.is_discarded()) fail(shown, "is no JSON, or damaged");
  return json;
}

// A pair of checkpoints.
class CheckpointComparison {
 public:
  CheckpointComparison(RunDifference& difference, const std::string& first, const std::string& second, bool everything)
      : difference_(difference),
        partings_(difference.partings),
        first_(first),
        second_(second),
        everything_(everything) {}

  // Returns how many files, or models, are in both.
  std::int64_t compare() {
    const std::size_t before = partings_.all().size();
    std::int64_t compared = 0;
    each(first_.models(), second_.models(), [&](const std::string& stem) {
      compare_weights(partings_, StoredTensors(first_.source().directory(), stem),
                      StoredTensors(second_.source().directory(), stem));
      ++compared;
    });
    std::set<std::string> files = first_.other_files(), others = second_.other_files();
    if (!everything_) {
      files.erase("manifest.json");
      others.erase("manifest.json");
    }
    each(files, others, [&](const std::string& name) {
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
        if (const std::string damage = one->damage_of(file); !damage.empty()) difference_.notes.push_back(damage);
  }

  RunDifference& difference_;
  Partings& partings_;
  const Checkpoint first_, second_;
  const bool everything_;
};

// ---- series

std::optional<std::int64_t> number_in(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && !text.empty() ? std::optional(number)
                                                                                   : std::nullopt;
}

std::optional<std::int64_t> step_of(const io::CheckpointReader* reader) {
  const auto updates = reader ? reader->info().find("updates") : std::map<std::string, std::string>::const_iterator();
  return reader && updates != reader->info().end() ? number_in(updates->second) : std::nullopt;
}

using Series = std::map<std::int64_t, std::string>;  // paths

Series by_number(const std::vector<std::string>& paths) {
  Series series;
  for (const std::string& path : paths) {
    const std::string name = fs::path(path).filename().string();
    series.emplace(number_in(name.substr(name.rfind('_') + 1)).value_or(-1), path);
  }
  return series;
}

// Nothing where one has no step, or two have the same.
std::optional<Series> by_step(const std::vector<std::string>& paths) {
  Series series;
  for (const std::string& path : paths) {
    const io::CheckpointReader reader(path);
    const auto step = step_of(&reader);
    if (!step || !series.emplace(*step, path).second) return {};
  }
  return series;
}

void add_missing(Partings& partings, const Series& series, const Series& other, bool steps, Parting::Kind kind) {
  for (const auto& [number, path] : series) {
    if (other.contains(number)) continue;
    partings.step = steps ? std::optional(number) : std::nullopt;
    partings.checkpoint = fs::path(path).filename().string();
    partings.add({.kind = kind});
  }
}

RunDifference compare_series(const std::string& first_path, const std::string& second_path, bool everything) {
  const auto first_paths = io::list_checkpoints(first_path), second_paths = io::list_checkpoints(second_path);
  auto first_steps = by_step(first_paths), second_steps = by_step(second_paths);
  const bool steps = first_steps && second_steps;
  const Series first = steps ? *first_steps : by_number(first_paths);
  const Series second = steps ? *second_steps : by_number(second_paths);
  RunDifference difference{.partings = {}, .unit = "checkpoints"};
  Partings& partings = difference.partings;
  std::set<std::string> settings;  // that have been told
  for (const auto& [number, path] : first) {
    const auto other = second.find(number);
    if (other == second.end()) continue;
    const std::size_t before = partings.all().size();
    partings.step = steps ? std::optional(number) : std::nullopt;
    partings.checkpoint = fs::path(path).filename().string();
    CheckpointComparison(difference, path, other->second, everything).compare();
    ++difference.compared;
    auto& all = partings.all();
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(before);
    const bool part = std::any_of(begin, all.end(), [](const Parting& one) { return !one.setting; });
    all.erase(std::remove_if(begin, all.end(),
                             [&](const Parting& one) { return one.setting && !settings.insert(one.name).second; }),
              all.end());
    if (part) break;
    difference.last_same_step = partings.step;
  }
  add_missing(partings, first, second, steps, Parting::Kind::only_in_first);
  add_missing(partings, second, first, steps, Parting::Kind::only_in_second);
  return difference;
}

// ---- what is at a path

enum class Kind { safetensors, pickle, json, log, checkpoint, series };

struct Place {
  Kind kind;
  std::string path;
};

bool exists(const std::string& directory, const char* name) {
  std::error_code error;
  return fs::exists(fs::path(directory) / name, error);
}

Place place_in_directory(const std::string& path) {
  const io::CheckpointSource source(path);
  if (source.reader() || source.has("tandem_state.json") || source.has("optimizer.bin") || has_model(source, "model"))
    return {Kind::checkpoint, path};
  if (!io::list_checkpoints(path).empty()) return {Kind::series, path};
  if (exists(path, "log.jsonl")) return {Kind::log, path + "/log.jsonl"};
  fail(path, "is no checkpoint and no folder of weights, and holds no checkpoints by number and no log.jsonl");
}

// Whether it is one value of JSON that takes several lines.
bool is_json(const at::Tensor& file) {
  const std::string_view text(static_cast<const char*>(file.const_data_ptr()), file.nbytes());
  return io::parse_json(std::string(text.substr(0, text.find('\n')))).is_discarded() &&
         !io::parse_json(std::string(text)).is_discarded();
}

Place place_at(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return place_in_directory(path);
  const io::ReadFile file(path, path, io::Links::follow);
  std::string begin(2, '\0');
  begin.resize(file.read(begin.data(), begin.size()));
  if (begin.empty()) fail(path, "is empty");
  if (io::is_pickle_file(path, path)) return {Kind::pickle, path};
  if (begin.size() == 2 && begin[0] == '{' && begin[1] != '\0') {  // the length of a safetensors header has that 0
    const bool one = file.bytes() <= kMostJsonBytes && is_json(io::load_bytes(path, path, io::Links::follow));
    return {one ? Kind::json : Kind::log, path};
  }
  try {
    io::read_safetensors_header(path);
  } catch (const tandem::CheckpointError&) {
    if (path.ends_with(".safetensors")) throw;
    fail(path, "is no file of safetensors or torch.save and no log of JSON objects, or damaged");
  }
  return {Kind::safetensors, path};
}

bool has_tensors(Kind kind) { return kind == Kind::safetensors || kind == Kind::pickle || kind == Kind::checkpoint; }

std::string words_for(Kind kind) {
  switch (kind) {
    case Kind::safetensors: return "a file of safetensors";
    case Kind::pickle: return "a file of torch.save";
    case Kind::json: return "a file of JSON";
    case Kind::log: return "a log";
    case Kind::checkpoint: return "a checkpoint or folder of weights";
    default: return "a folder of checkpoints";
  }
}

RunDifference compare_two_files(const Place& first, const Place& second, bool everything) {
  RunDifference difference{.partings = {}, .compared = 1, .unit = "files"};
  const at::Tensor a = io::load_bytes(first.path, first.path, io::Links::follow);
  const at::Tensor b = io::load_bytes(second.path, second.path, io::Links::follow);
  if (first.kind == Kind::pickle)
    compare_pickles(difference.partings, a, first.path, b, second.path, everything);
  else
    compare_json(difference.partings, json_in(a, first.path), json_in(b, second.path), {});
  return difference;
}

RunDifference compare_two_checkpoints(const std::string& first, const std::string& second, bool everything) {
  RunDifference difference{.partings = {}, .unit = "files"};
  difference.compared = CheckpointComparison(difference, first, second, everything).compare();
  return difference;
}

}  // namespace

bool names_the_machine(const std::string& flag) {
  static const std::set<std::string> all{
      "cpu",         "gpus",         "devices",      "transport",     "config",         "data-dir",
      "data-file",   "init-weights", "save-weights", "log-json",      "checkpoint-dir", "save-every",
      "total-limit", "resume",       "profile",      "profile-steps", "nvtx-steps",     "log-with",
      "project-dir", "report",       "log-every",    "quiet",         "no-progress"};
  return all.contains(flag);
}

RunDifference compare_runs(const std::string& first_path, const std::string& second_path, bool everything) {
  const Place first = place_at(first_path), second = place_at(second_path);
  if (first.kind == second.kind) switch (first.kind) {
      case Kind::log: return compare_logs(first.path, second.path, everything);
      case Kind::series: return compare_series(first.path, second.path, everything);
      case Kind::checkpoint: return compare_two_checkpoints(first.path, second.path, everything);
      case Kind::pickle:
      case Kind::json: return compare_two_files(first, second, everything);
      default: break;
    }
  if (!has_tensors(first.kind) || !has_tensors(second.kind))
    throw tandem::ConfigError("'" + first_path + "' is " + words_for(first.kind) + ", and '" + second_path + "' " +
                              words_for(second.kind) + "; compare two of a kind");
  RunDifference difference{.partings = {}, .unit = "tensors"};
  difference.compared = compare_weights(difference.partings, StoredTensors(first.path), StoredTensors(second.path));
  return difference;
}

}  // namespace tandem_tool
