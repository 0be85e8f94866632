#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <optional>

#include <nlohmann/json.hpp>

#include "io/append_file.h"
#include "io/json_text.h"
#include "tandem/io/file_trackers.h"

namespace tandem::io {
namespace {

// Its numbers do not depend on the locale, and it writes infinite and NaN ones as null.
using Json = nlohmann::ordered_json;

Json json_of(const Config& config) {
  Json object = Json::object();
  for (const auto& [name, value] : config)
    std::visit([&object, &key = name](const auto& v) { object[key] = v; }, value);
  return object;
}

Json json_of(std::span<const Scalar> values) {
  Json object = Json::object();
  for (const Scalar& scalar : values) object[std::string(scalar.name)] = scalar.value;
  return object;
}

// What of a name can be a part of a file's name.
std::string plain_name_of(const std::string& name) {
  std::string text = name.substr(0, 100);
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
  };
  std::replace_if(
      text.begin(), text.end(), [&](char c) { return !is_plain(c); }, '_');
  return text;
}

class JsonLinesTracker : public Tracker {
 public:
  explicit JsonLinesTracker(const std::string& directory) : directory_(directory) {}

  std::string name() const override { return "jsonl"; }

  void begin(const Run& run, double time) override {
    make_directories(directory_);
    file_.emplace(directory_ + "/log.jsonl");
    file_->remove_cut_line();
    write({{"type", "run"},
           {"name", run.name},
           {"time", time},
           {"config", json_of(run.config)},
           {"versions", json_of(run.versions)},
           {"ranks", run.ranks},
           {"device", run.device}});
  }

  void log(std::span<const Scalar> values, Moment when) override {
    write({{"type", "scalars"}, {"step", when.step}, {"time", when.time}, {"values", json_of(values)}});
  }

  void log_text(const std::string& name, const std::string& text, Moment when) override {
    write({{"type", "text"}, {"step", when.step}, {"time", when.time}, {"name", name}, {"text", text}});
  }

  void log_histogram(const std::string& name, const Histogram& histogram, Moment when) override {
    write({{"type", "histogram"},
           {"step", when.step},
           {"time", when.time},
           {"name", name},
           {"min", histogram.min},
           {"max", histogram.max},
           {"sum", histogram.sum},
           {"sum_squares", histogram.sum_squares},
           {"count", histogram.count},
           {"edges", histogram.edges},
           {"counts", histogram.counts}});
  }

  void log_images(const std::string& name, std::span<const Image> images, Moment when) override {
    make_directories(directory_ + "/images");
    Json files = Json::array(), captions = Json::array();
    for (const Image& image : images) {
      files.push_back(write_image(name, image, when.step, files.size()));
      captions.push_back(image.caption);
    }
    write({{"type", "images"},
           {"step", when.step},
           {"time", when.time},
           {"name", name},
           {"files", files},
           {"captions", captions}});
  }

  void log_matrix(const std::string& name, const Matrix& matrix, Moment when) override {
    write({{"type", "matrix"},
           {"step", when.step},
           {"time", when.time},
           {"name", name},
           {"labels", matrix.labels},
           {"values", matrix.values}});
  }

  void log_event(const std::string& name, const std::string& detail, Moment when) override {
    write({{"type", "event"}, {"step", when.step}, {"time", when.time}, {"name", name}, {"detail", detail}});
  }

  void end(RunStatus status, std::span<const Scalar> values, double time) override {
    write({{"type", "end"}, {"time", time}, {"status", name_of(status)}, {"values", json_of(values)}});
  }

 private:
  // One line.
  void write(const Json& object) { file_->append(shown_json(object) + '\n'); }

  // Returns its path within the directory. Replaces that of a run which this one goes on with.
  std::string write_image(const std::string& name, const Image& image, std::int64_t step, std::size_t number) {
    std::array<char, 64> suffix;
    std::snprintf(suffix.data(), suffix.size(), "-%06lld-%zu.png", static_cast<long long>(step), number);
    const std::string path = "images/" + file_name_of(name) + suffix.data();
    write_file(directory_ + "/" + path, image.png);
    return path;
  }

  // Another one for each name.
  const std::string& file_name_of(const std::string& name) {
    const auto known = file_names_.find(name);
    if (known != file_names_.end()) return known->second;
    const std::string plain = plain_name_of(name);
    std::string free = plain;
    const auto is_taken = [&](const auto& entry) { return entry.second == free; };
    for (int i = 2; std::any_of(file_names_.begin(), file_names_.end(), is_taken); ++i)
      free = plain + "_" + std::to_string(i);
    return file_names_[name] = free;
  }

  const std::string directory_;
  std::optional<AppendFile> file_;
  std::map<std::string, std::string> file_names_;  // of images, by name
};

}  // namespace

std::unique_ptr<Tracker> json_lines_tracker(const std::string& directory) {
  return std::make_unique<JsonLinesTracker>(directory);
}

}  // namespace tandem::io
