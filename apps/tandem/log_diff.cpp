#include <limits>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "checkpoint_diff.h"
#include "io/read_file.h"
#include "report/log_lines.h"
#include "run_diff.h"
#include "tandem/core/error.h"

namespace tandem_tool {
namespace {

using Json = nlohmann::json;

// Before all steps, and after them.
constexpr std::int64_t kBegin = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kEnd = std::numeric_limits<std::int64_t>::max();

// What a line is about.
struct Key {
  std::int64_t step = kBegin;
  std::string type, name;
  auto operator<=>(const Key&) const = default;

  bool has_step() const { return step != kBegin && step != kEnd; }
};

std::string text_at(const Json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// Times, rates and memory, as `train` and its trackers name them.
bool is_measured(const std::string& name) {
  static const std::set<std::string> all{"time", "timestamp", "seconds"};
  const std::string last = name.substr(name.rfind('/') + 1);
  const auto ends = [&](const char* ending) { return last.ends_with(ending); };
  return name.starts_with("perf/") || name.starts_with("memory/") || all.contains(last) || ends("_seconds") ||
         ends("_per_second") || ends("_ms") || ends("_mb");
}

// The lines of a log by what they are about. A run that was resumed says again what came after its checkpoint: the last
// word counts.
class Log {
 public:
  Log(const std::string& path, bool everything) : path_(path), everything_(everything) {
    const tandem::io::ReadFile file(path, path, tandem::io::Links::follow);  // no pipe
    tandem_report::for_each_line(path, [this](const tandem_report::LogLine& line) { take(line); });
  }

  const std::map<Key, Json>& lines() const { return lines_; }

 private:
  void take(const tandem_report::LogLine& line) {
    Json json = line.too_long ? Json() : tandem::io::parse_json(std::string(line.text));
    if (!json.is_object())
      throw tandem::CheckpointError(path_ + ": line " + std::to_string(line.number) +
                                    (line.complete ? " is no JSON object" : " is cut off: no JSON object"));
    Key key = key_of(json);
    forget_what_is_void(key, text_at(json, "name"));
    if (!everything_ && key.type == "event") return;
    if (!everything_) strip(json, "", key.type == "run");
    if (key.step == kBegin && key.type.empty()) key.name = "line " + std::to_string(++without_step_);
    Json& known = lines_[key];
    if (key.type == "scalars" && known.is_object() && known.contains("values") && json.contains("values")) {
      known["values"].update(json["values"]);
      return;
    }
    known = std::move(json);
  }

  static Key key_of(const Json& line) {
    Key key{.type = text_at(line, "type"), .name = text_at(line, "name")};
    if (key.type.empty() && line.contains("eval") && line["eval"].is_object())
      key.type = "eval";  // of train --log-json
    const Json& steps = key.type == "eval" ? line["eval"] : line;
    const auto step = steps.find("step");
    if (step != steps.end() && step->is_number_integer())
      key.step = step->get<std::int64_t>();
    else if (key.type == "end" || line.contains("final"))
      key.step = kEnd;
    if (key.type == "run") key.name.clear();
    return key;
  }

  // A run that begins once more takes its steps again from its first line on, or from where it was resumed.
  void forget_what_is_void(const Key& key, const std::string& name) {
    if (key.type == "run") again_ = lines_.contains(key);
    if (!again_ || !key.has_step()) return;
    again_ = false;
    const bool kept = key.type == "event" && name == "resumed";
    lines_.erase(lines_.lower_bound(Key{key.step + (kept ? 1 : 0), {}, {}}), lines_.end());
  }

  static void strip(Json& object, const std::string& within, bool of_run) {
    for (auto field = object.begin(); field != object.end();) {
      const bool of_machine = (of_run && within == "config" && names_the_machine(field.key())) ||
                              (of_run && within.empty() && (field.key() == "ranks" || field.key() == "device"));
      if (of_machine || is_measured(field.key())) {
        field = object.erase(field);
        continue;
      }
      if (field->is_object()) strip(*field, field.key(), of_run);
      ++field;
    }
  }

  const std::string path_;
  const bool everything_;
  std::map<Key, Json> lines_;
  std::int64_t without_step_ = 0;
  bool again_ = false;  // and its first step is still to come
};

// Empty for what has nothing but a step.
std::string label(const Key& key) {
  if (key.type.empty()) return key.step == kEnd ? "final" : key.has_step() ? "" : key.name;
  if (key.type == "scalars" || key.type == "eval") return "";
  return key.name.empty() ? key.type : key.type + " " + key.name;
}

// Lines that one log has and the other has not, those of a kind together.
void add_missing(Partings& partings, const Log& log, const Log& other, Parting::Kind kind) {
  std::map<std::pair<bool, std::string>, std::vector<std::int64_t>> kinds;  // their steps; those with steps first
  for (const auto& [key, line] : log.lines())
    if (!other.lines().contains(key)) kinds[{!key.has_step(), label(key)}].push_back(key.step);
  for (const auto& [one, steps] : kinds) {
    const auto& [is_outside, its_label] = one;
    std::string name = its_label;
    if (steps.size() > 1)
      name += (name.empty() ? "" : ", ") + std::string("this and ") + std::to_string(steps.size() - 1) +
              " later, up to step " + std::to_string(steps.back());
    partings.step = is_outside ? std::nullopt : std::optional(steps.front());
    partings.add({.kind = kind, .name = name});
  }
}

// Returns whether the two lines part, in more than settings.
bool compare_lines(Partings& partings, const Key& key, const Json& first, const Json& second) {
  const std::size_t before = partings.all().size();
  partings.step = key.has_step() ? std::optional(key.step) : std::nullopt;
  compare_json(partings, first, second, {});
  const std::string what = label(key);
  for (std::size_t i = before; i < partings.all().size(); ++i) {
    Parting& parting = partings.all()[i];
    parting.setting = key.type == "run";
    if (what != "final" && what != "run" && !what.empty()) parting.name = what + ", " + parting.name;
  }
  return partings.all().size() > before && key.type != "run";
}

}  // namespace

RunDifference compare_logs(const std::string& first_path, const std::string& second_path, bool everything) {
  const Log first(first_path, everything), second(second_path, everything);
  RunDifference difference{.partings = {}, .unit = "lines"};
  std::optional<std::int64_t> parted, current;
  for (const auto& [key, line] : first.lines()) {
    const auto other = second.lines().find(key);
    if (other == second.lines().end()) continue;
    if (parted && key.step > *parted) break;
    if (key.has_step() && key.step != current && !parted) difference.last_same_step = std::exchange(current, key.step);
    if (compare_lines(difference.partings, key, line, other->second)) parted = key.step;
    ++difference.compared;
  }
  if (!parted || *parted == kEnd) difference.last_same_step = current;
  add_missing(difference.partings, first, second, Parting::Kind::only_in_first);
  add_missing(difference.partings, second, first, Parting::Kind::only_in_second);
  return difference;
}

}  // namespace tandem_tool
