#include "page.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <string_view>

#include "page_texts.h"

namespace tandem_report {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMostPoints = 1000, kFewestPoints = 50;  // of a series
constexpr std::size_t kPointsOfPage = 100'000;

// As many digits as a plot can show; null for what is not finite.
Json rounded(double value) {
  if (!std::isfinite(value)) return nullptr;
  char text[32];
  std::snprintf(text, sizeof text, "%.5g", value);
  const double shorter = std::strtod(text, nullptr);
  if (shorter == std::trunc(shorter) && std::fabs(shorter) < 1e15) return static_cast<std::int64_t>(shorter);
  return shorter;
}

Json rounded(const std::vector<double>& values) {
  Json array = Json::array();
  for (const double value : values) array.push_back(rounded(value));
  return array;
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    const std::size_t size = std::min<std::size_t>(3, bytes.size() - at);
    std::uint32_t group = 0;
    for (std::size_t i = 0; i < 3; ++i) group = group << 8 | (i < size ? static_cast<unsigned char>(bytes[at + i]) : 0);
    for (std::size_t i = 0; i < 4; ++i) text += i <= size ? kDigits[group >> (18 - 6 * i) & 63] : '=';
  }
  return text;
}

// Series of a run that were logged at the same steps share them.
class Axes {
 public:
  std::size_t number(const std::vector<std::int64_t>& steps) {
    const auto found = std::find(axes_.begin(), axes_.end(), steps);
    if (found != axes_.end()) return static_cast<std::size_t>(found - axes_.begin());
    axes_.push_back(steps);
    return axes_.size() - 1;
  }
  const std::vector<std::vector<std::int64_t>>& all() const { return axes_; }

 private:
  std::vector<std::vector<std::int64_t>> axes_;
};

Json series_data(const Series& series, std::size_t most, Axes& axes) {
  const Summary summary = summarise(series.points());
  const Thinned thinned = thin(series.points(), most);
  Json json{{"axis", axes.number(thinned.steps)},    {"points", series.points().size()},
            {"last", rounded(summary.last)},         {"least", rounded(summary.least)},
            {"greatest", rounded(summary.greatest)}, {"average", rounded(summary.mean)},
            {"mean", rounded(thinned.mean)}};
  if (summary.not_finite > 0) json["not_finite"] = {summary.not_finite, summary.first_not_finite};
  if (thinned.steps.size() == series.points().size()) return json;
  json["low"] = rounded(thinned.low);
  json["high"] = rounded(thinned.high);
  return json;
}

Json named(const std::string& name, std::int64_t step) { return {{"name", name}, {"step", step}}; }

Json media(const Run& run) {
  Json json{{"matrices", Json::array()},
            {"images", Json::array()},
            {"histograms", Json::array()},
            {"texts", Json::array()},
            {"events", Json::array()}};
  for (const auto& [name, matrix] : run.matrices) {
    auto& entry = json["matrices"].emplace_back(named(name, matrix.step));
    entry["labels"] = matrix.labels;
    for (const auto& row : matrix.values) entry["values"].push_back(rounded(row));
  }
  for (const auto& [name, set] : run.images) {
    auto& entry = json["images"].emplace_back(named(name, set.step));
    for (const auto& image : set.images)
      entry["items"].push_back({{"png", base64(image.png)}, {"caption", image.caption}});
  }
  for (const auto& [name, histograms] : run.histograms) {
    auto& entry = json["histograms"].emplace_back(Json{{"name", name}, {"steps", Json::array()}});
    for (const auto& histogram : histograms)
      entry["steps"].push_back(
          {{"step", histogram.step}, {"edges", rounded(histogram.edges)}, {"counts", rounded(histogram.counts)}});
  }
  for (const auto& text : run.texts) json["texts"].emplace_back(named(text.name, text.step))["text"] = text.text;
  for (const auto& event : run.events)
    json["events"].emplace_back(named(event.name, event.step))["detail"] = event.detail;
  return json;
}

Json run_data(const Run& run, const std::string& label, std::size_t most) {
  Json json{{"label", label},          {"directory", run.directory.string()},
            {"status", run.status},    {"started", run.started},
            {"ended", run.ended},      {"ranks", run.ranks},
            {"device", run.device},    {"config", run.config},
            {"versions", run.versions}};
  json["final"] = Json::object();
  for (const auto& [name, value] : run.final_values) json["final"][name] = rounded(value);
  Axes axes;
  json["series"] = Json::object();
  for (const auto& [name, series] : run.series)
    if (!series.points().empty()) json["series"][name] = series_data(series, most, axes);
  json["elapsed"] = series_data(run.elapsed, most, axes);
  json["axes"] = axes.all();
  json.update(media(run));
  json["notes"] = run.notes;
  return json;
}

std::string last_part(const std::filesystem::path& directory) {
  const auto whole = directory.lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
}

// Names, with directories and then numbers where these are the same.
std::vector<std::string> labels(const std::vector<Run>& runs) {
  std::vector<std::string> result;
  std::map<std::string, int> names;
  for (const auto& run : runs) ++names[run.name];
  std::set<std::string> taken;
  for (const auto& run : runs) {
    std::string label = run.name;
    const std::string folder = last_part(run.directory);
    if (label.empty())
      label = folder;
    else if (names[run.name] > 1 && label != folder)
      label += " (" + folder + ")";
    const std::string stem = label;
    for (int number = 2; !taken.insert(label).second; ++number) label = stem + " #" + std::to_string(number);
    result.push_back(label);
  }
  return result;
}

// JSON that is also safe between the tags of a script: nothing in it looks like a tag.
std::string json_for_html(const Json& data) {
  const std::string json = data.dump(-1, ' ', true, Json::error_handler_t::replace);
  std::string safe;
  safe.reserve(json.size());
  for (const char character : json) {
    if (character == '<')
      safe += "\\u003c";
    else if (character == '>')
      safe += "\\u003e";
    else if (character == '&')
      safe += "\\u0026";
    else
      safe += character;
  }
  return safe;
}

std::string escaped(std::string_view text) {
  std::string html;
  for (const char character : text) {
    if (character == '<')
      html += "&lt;";
    else if (character == '&')
      html += "&amp;";
    else
      html += character;
  }
  return html;
}

// Scripts without it do not run, so that nobody who writes a log can know it.
std::string random_nonce() {
  std::random_device random;
  char text[33];
  std::snprintf(text, sizeof text, "%08x%08x%08x%08x", random(), random(), random(), random());
  return text;
}

}  // namespace

Json page_data(const std::vector<Run>& runs) {
  std::size_t series = 0;
  for (const auto& run : runs) series += run.series.size() + 1;
  const std::size_t most = std::clamp(kPointsOfPage / std::max<std::size_t>(series, 1), kFewestPoints, kMostPoints);
  const auto names = labels(runs);
  Json json{{"runs", Json::array()}};
  for (std::size_t i = 0; i < runs.size(); ++i) json["runs"].push_back(run_data(runs[i], names[i], most));
  return json;
}

std::string page(const Json& data, const std::string& version) {
  const std::map<std::string_view, std::string> parts{{"nonce", random_nonce()},
                                                      {"follow", version.empty() ? "" : " data-follow=" + version},
                                                      {"connect", version.empty() ? "" : " connect-src 'self';"},
                                                      {"style", std::string(texts::style)},
                                                      {"library", std::string(texts::library)},
                                                      {"script", std::string(texts::script)},
                                                      {"licence", escaped(texts::licence)},
                                                      {"data", json_for_html(data)}};
  std::string html;
  std::string_view rest = texts::frame;
  for (std::size_t at; (at = rest.find("{{")) != std::string_view::npos;) {
    const std::size_t end = rest.find("}}", at);
    html.append(rest.substr(0, at)).append(parts.at(rest.substr(at + 2, end - at - 2)));
    rest.remove_prefix(end + 2);
  }
  return html.append(rest);
}

}  // namespace tandem_report
