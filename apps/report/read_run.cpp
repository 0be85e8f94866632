#include "read_run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>
#include <unordered_map>

#include <simdjson.h>

#include "log_lines.h"
#include "read_image.h"
#include "tandem/core/error.h"

namespace tandem_report {
namespace {

namespace dom = simdjson::dom;

// A page can show no more; a log of ours has far less.
constexpr std::size_t kMostSeries = 500, kMostEvents = 2000, kMostTexts = 200, kMostNames = 50, kMostEntries = 500;
constexpr std::size_t kMostHistograms = 40, kMostBins = 512, kMostImages = 64, kMostClasses = 100, kMostNotes = 8;
constexpr std::size_t kLongestName = 200, kLongestValue = 1000, kLongestText = 65536;  // bytes
constexpr std::int64_t kLastStep = std::int64_t{1} << 53;                              // exact in JavaScript
constexpr double kNotFinite = std::numeric_limits<double>::quiet_NaN();

std::string shortened(std::string_view text, std::size_t longest) {
  if (text.size() <= longest) return std::string(text);
  while (longest > 0 && (static_cast<unsigned char>(text[longest]) & 0xC0) == 0x80) --longest;  // between characters
  return std::string(text.substr(0, longest)) + "…";
}

std::string string_at(const dom::object& line, const char* key, std::size_t longest = kLongestName) {
  std::string_view text;
  return line[key].get(text) ? std::string() : shortened(text, longest);
}

// A number; NaN for null, which stands for values that are not finite; none for anything else.
std::optional<double> number(const dom::element& value) {
  double result;
  if (!value.get(result)) return result;
  return value.is_null() ? std::optional(kNotFinite) : std::nullopt;
}

std::optional<double> number_at(const dom::object& line, const char* key) {
  dom::element value;
  return line[key].get(value) ? std::nullopt : number(value);
}

// Numbers of an array; nothing when it holds anything else.
std::optional<std::vector<double>> numbers(const dom::element& value, std::size_t most) {
  dom::array array;
  if (value.get(array)) return std::nullopt;
  std::vector<double> result;
  for (const dom::element element : array) {
    const auto entry = number(element);
    if (!entry || result.size() == most) return std::nullopt;
    result.push_back(*entry);
  }
  return result;
}

std::vector<std::string> strings_at(const dom::object& line, const char* key, std::size_t most) {
  std::vector<std::string> result;
  dom::array array;
  if (line[key].get(array)) return result;
  for (const dom::element element : array) {
    std::string_view text;
    if (result.size() == most) break;
    result.push_back(element.get(text) ? std::string() : shortened(text, kLongestName));
  }
  return result;
}

std::map<std::string, std::string> entries_at(const dom::object& line, const char* key) {
  std::map<std::string, std::string> entries;
  dom::object object;
  if (line[key].get(object)) return entries;
  for (const auto [name, value] : object) {
    if (entries.size() == kMostEntries) break;
    std::string_view text;
    const bool is_text = !value.get(text);
    entries[shortened(name, kLongestName)] =
        shortened(is_text ? std::string(text) : std::string(simdjson::minify(value)), kLongestValue);
  }
  return entries;
}

// Why a line or a part of it is left out.
struct Unusable {
  const char* reason;
};

// Builds a run from the lines of its log.
class RunReader {
 public:
  explicit RunReader(const std::filesystem::path& directory) { run_.directory = directory; }

  void read(const LogLine& line) {
    try {
      if (line.too_long) throw Unusable{"is too long"};
      dom::object object;
      if (parser_.parse(line.text.data(), line.text.size(), false).get(object))
        throw Unusable{line.complete ? "is no JSON object" : "is cut off"};
      dispatch(object);
    } catch (const Unusable& unusable) {
      if (unusable_++ < kMostNotes)
        run_.notes.push_back("line " + std::to_string(line.number) + " of the log " + unusable.reason +
                             " and is left out");
    }
  }

  Run finish() {
    if (unusable_ > kMostNotes)
      run_.notes.push_back(std::to_string(unusable_ - kMostNotes) + " further lines of the log are left out");
    if (left_out_) run_.notes.push_back("the log holds more than a page can show; what comes later is left out");
    for (auto& [name, series] : series_) {
      series.finish();
      run_.series.emplace(name, std::move(series));
    }
    run_.elapsed.finish();
    return std::move(run_);
  }

 private:
  void dispatch(const dom::object& line) {
    static const std::unordered_map<std::string_view, void (RunReader::*)(const dom::object&)> kinds{
        {"run", &RunReader::begin},
        {"scalars", &RunReader::add_scalars},
        {"text", &RunReader::add_text},
        {"images", &RunReader::add_images},
        {"matrix", &RunReader::add_matrix},
        {"event", &RunReader::add_event},
        {"histogram", &RunReader::add_histogram},
        {"end", &RunReader::end}};
    std::string_view type;
    if (line["type"].get(type)) throw Unusable{"has no type"};
    const auto kind = kinds.find(type);
    if (kind == kinds.end()) throw Unusable{"is of an unknown type"};
    take_time(line);
    (this->*kind->second)(line);
  }

  void take_time(const dom::object& line) {
    const double time = number_at(line, "time").value_or(kNotFinite);
    if (!std::isfinite(time)) return;
    if (run_.started == 0) run_.started = time;
    run_.ended = time_ = time;
  }

  void begin(const dom::object& line) {
    if (run_.name.empty()) run_.name = string_at(line, "name");
    run_.device = string_at(line, "device");
    run_.ranks = static_cast<std::int64_t>(std::clamp(number_at(line, "ranks").value_or(0), 0.0, 1e6));
    run_.config = entries_at(line, "config");
    run_.versions = entries_at(line, "versions");
    run_.status.clear();
    run_.final_values.clear();
    time_of_begin_ = time_;
    resumed_ = begin_.has_value();
    if (!resumed_) begin_ = time_;
  }

  std::int64_t step_of(const dom::object& line) {
    const double step = number_at(line, "step").value_or(-1);
    if (!(step >= 0 && step <= static_cast<double>(kLastStep))) throw Unusable{"has no step"};
    return static_cast<std::int64_t>(step);
  }

  void add_scalars(const dom::object& line) {
    const std::int64_t step = step_of(line);
    dom::object values;
    if (line["values"].get(values)) throw Unusable{"has no values"};
    if (resumed_) forget_from(step);
    elapsed_ = std::max(elapsed_, time_ - begin_.value_or(run_.started));  // clocks are put back
    run_.elapsed.add(step, elapsed_);
    for (const auto [name, value] : values)
      if (const auto entry = number(value)) add_scalar(name, step, *entry);
  }

  void add_scalar(std::string_view name, std::int64_t step, double value) {
    // A string for each of many millions of values would take most of the time.
    key_.assign(name.substr(0, kLongestName));
    auto series = series_.find(key_);
    if (series == series_.end()) {
      if (full(series_.size(), kMostSeries)) return;
      series = series_.emplace(shortened(name, kLongestName), Series()).first;
    }
    series->second.add(step, value);
  }

  // A resumed run takes its steps again from here. What passed before it was resumed is no time of training.
  void forget_from(std::int64_t step) {
    for (auto& [name, series] : series_) series.cut(step);
    run_.elapsed.cut(step);
    elapsed_ = run_.elapsed.points().empty() ? 0.0 : run_.elapsed.points().back().value;
    begin_ = time_of_begin_ - elapsed_;
    const auto is_later = [&](const auto& entry) { return entry.step >= step; };
    std::erase_if(run_.texts, is_later);
    std::erase_if(run_.events, [&](const Event& event) { return event.step >= step && event.name != "resumed"; });
    for (auto& [name, histograms] : run_.histograms) std::erase_if(histograms, is_later);
    resumed_ = false;
  }

  void add_text(const dom::object& line) {
    if (full(run_.texts.size(), kMostTexts)) return;
    run_.texts.push_back({step_of(line), string_at(line, "name"), string_at(line, "text", kLongestText)});
  }

  void add_event(const dom::object& line) {
    if (full(run_.events.size(), kMostEvents)) return;
    run_.events.push_back({step_of(line), string_at(line, "name"), string_at(line, "detail")});
  }

  void add_histogram(const dom::object& line) {
    dom::element edges, counts;
    if (line["edges"].get(edges) || line["counts"].get(counts)) throw Unusable{"has no edges or no counts"};
    auto edge_values = numbers(edges, kMostBins + 1), count_values = numbers(counts, kMostBins);
    if (!edge_values || !count_values || count_values->empty() || edge_values->size() != count_values->size() + 1)
      throw Unusable{"has edges and counts that do not fit"};
    auto* histograms = named(run_.histograms, line);
    if (!histograms) return;
    histograms->push_back({step_of(line), std::move(*edge_values), std::move(*count_values)});
    // Every second one goes, as often as needed: what stays is spread over the run.
    if (histograms->size() <= kMostHistograms) return;
    std::size_t index = 0;
    std::erase_if(*histograms, [&](const Histogram&) { return index++ % 2 == 1; });
  }

  void add_images(const dom::object& line) {
    ImageSet set{step_of(line), {}};
    const auto files = strings_at(line, "files", kMostImages);
    const auto captions = strings_at(line, "captions", kMostImages);
    for (std::size_t i = 0; i < files.size(); ++i) {
      auto image = read_image(run_.directory, files[i]);
      if (image.problem.empty())
        set.images.push_back({std::move(image.png), i < captions.size() ? captions[i] : std::string()});
      else if (image_notes_++ < kMostNotes)
        run_.notes.push_back("the image '" + files[i] + "' " + image.problem + " and is left out");
    }
    if (auto* images = named(run_.images, line); images && !set.images.empty()) *images = std::move(set);
  }

  void add_matrix(const dom::object& line) {
    Matrix matrix{step_of(line), strings_at(line, "labels", kMostClasses), {}};
    dom::array rows;
    if (line["values"].get(rows)) throw Unusable{"has no values"};
    for (const dom::element element : rows) {
      auto row = numbers(element, kMostClasses);
      if (!row || matrix.values.size() == kMostClasses)
        throw Unusable{"holds no matrix of numbers of at most 100 rows and columns"};
      matrix.values.push_back(std::move(*row));
    }
    for (const auto& row : matrix.values)
      if (row.size() != matrix.values.size()) throw Unusable{"holds a matrix that is not square"};
    if (auto* stored = named(run_.matrices, line)) *stored = std::move(matrix);
  }

  void end(const dom::object& line) {
    run_.status = string_at(line, "status");
    dom::object values;
    if (line["values"].get(values)) return;
    for (const auto [name, value] : values)
      if (const auto entry = number(value); entry && !full(run_.final_values.size(), kMostEntries))
        run_.final_values[shortened(name, kLongestName)] = *entry;
  }

  // The entry of the line's name; none when there are too many of them.
  template <class Value>
  Value* named(std::map<std::string, Value>& map, const dom::object& line) {
    const std::string name = string_at(line, "name");
    if (!map.contains(name) && full(map.size(), kMostNames)) return nullptr;
    return &map[name];
  }

  bool full(std::size_t size, std::size_t most) {
    left_out_ = left_out_ || size >= most;
    return size >= most;
  }

  dom::parser parser_;
  Run run_;
  std::unordered_map<std::string, Series> series_;
  std::string key_;
  double time_ = 0, time_of_begin_ = 0;  // of the last line, and of the last that began or resumed the run
  double elapsed_ = 0;                   // seconds of training so far
  std::optional<double> begin_;          // when the run would have begun without pauses
  bool resumed_ = false;                 // and its first step is still to come
  bool left_out_ = false;
  std::size_t unusable_ = 0, image_notes_ = 0;
};

}  // namespace

Run read_run(const std::filesystem::path& directory) {
  std::error_code ignored;
  const auto log = directory / "log.jsonl";
  if (!std::filesystem::is_directory(directory, ignored))
    throw tandem::ConfigError("'" + directory.string() + "' is no directory; name the --project-dir of a run");
  if (!std::filesystem::is_regular_file(log, ignored))
    throw tandem::ConfigError("'" + directory.string() +
                              "' holds no log.jsonl; name the --project-dir of a run with --log-with jsonl");
  RunReader reader(directory);
  for_each_line(log, [&](const LogLine& line) { reader.read(line); });
  return reader.finish();
}

}  // namespace tandem_report
