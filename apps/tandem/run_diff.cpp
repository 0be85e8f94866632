#include "run_diff.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>

#include "checkpoint_diff.h"
#include "io/checkpoint_error.h"
#include "io/checkpoint_source.h"
#include "io/file_bytes.h"
#include "io/read_file.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_series.h"

namespace tandem_tool {
namespace {

namespace fs = std::filesystem;
namespace io = tandem::io;

// ---- series

std::optional<std::int64_t> number_in(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && !text.empty() ? std::optional(number)
                                                                                   : std::nullopt;
}

std::optional<std::int64_t> step_of(const io::CheckpointReader& reader) {
  const auto updates = reader.info().find("updates");
  return updates == reader.info().end() ? std::nullopt : number_in(updates->second);
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
    const auto step = step_of(io::CheckpointReader(path));
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
    compare_checkpoints(partings, difference.notes, path, other->second, everything);
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

enum class FileKind { safetensors, pickle, json, log, checkpoint, series };

struct Place {
  FileKind kind;
  std::string path;
};

bool exists(const std::string& directory, const char* name) {
  std::error_code error;
  return fs::exists(fs::path(directory) / name, error);
}

Place place_in_directory(const std::string& path) {
  const io::CheckpointSource source(path);
  if (source.reader() || source.has("tandem_state.json") || source.has("optimizer.bin") || has_model(source, "model"))
    return {FileKind::checkpoint, path};
  if (!io::list_checkpoints(path).empty()) return {FileKind::series, path};
  if (exists(path, "log.jsonl")) return {FileKind::log, path + "/log.jsonl"};
  io::throw_checkpoint_error(
      path, "is no checkpoint and no folder of weights, and holds no checkpoints by number and no log.jsonl");
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
  if (begin.empty()) io::throw_checkpoint_error(path, "is empty");
  if (io::is_pickle_file(path, path)) return {FileKind::pickle, path};
  if (begin.size() == 2 && begin[0] == '{' && begin[1] != '\0') {  // the length of a safetensors header has that 0
    const bool one = is_json(io::load_bytes(path, path, io::Links::follow));
    return {one ? FileKind::json : FileKind::log, path};
  }
  try {
    io::read_safetensors_header(path);
  } catch (const tandem::CheckpointError&) {
    if (path.ends_with(".safetensors")) throw;
    io::throw_checkpoint_error(path, "is no file of safetensors or torch.save and no log of JSON objects, or damaged");
  }
  return {FileKind::safetensors, path};
}

bool has_tensors(FileKind kind) {
  return kind == FileKind::safetensors || kind == FileKind::pickle || kind == FileKind::checkpoint;
}

std::string words_for(FileKind kind) {
  switch (kind) {
    case FileKind::safetensors: return "a file of safetensors";
    case FileKind::pickle: return "a file of torch.save";
    case FileKind::json: return "a file of JSON";
    case FileKind::log: return "a log";
    case FileKind::checkpoint: return "a checkpoint or folder of weights";
    default: return "a folder of checkpoints";
  }
}

RunDifference compare_two_files(const Place& first, const Place& second, bool everything) {
  RunDifference difference{.partings = {}, .compared = 1, .unit = "files"};
  const at::Tensor a = io::load_bytes(first.path, first.path, io::Links::follow);
  const at::Tensor b = io::load_bytes(second.path, second.path, io::Links::follow);
  if (first.kind == FileKind::pickle)
    compare_pickles(difference.partings, a, first.path, b, second.path, everything);
  else
    compare_json(difference.partings, json_in(a, first.path), json_in(b, second.path), {});
  return difference;
}

RunDifference compare_two_checkpoints(const std::string& first, const std::string& second, bool everything) {
  RunDifference difference{.partings = {}, .unit = "files"};
  difference.compared = compare_checkpoints(difference.partings, difference.notes, first, second, everything);
  return difference;
}

}  // namespace

RunDifference compare_runs(const std::string& first_path, const std::string& second_path, bool everything) {
  const Place first = place_at(first_path), second = place_at(second_path);
  if (first.kind == second.kind) switch (first.kind) {
      case FileKind::log: return compare_logs(first.path, second.path, everything);
      case FileKind::series: return compare_series(first.path, second.path, everything);
      case FileKind::checkpoint: return compare_two_checkpoints(first.path, second.path, everything);
      case FileKind::pickle:
      case FileKind::json: return compare_two_files(first, second, everything);
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
