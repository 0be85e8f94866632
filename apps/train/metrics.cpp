#include "metrics.h"

#include <cstdio>

#include <nlohmann/json.hpp>

#include "io/json_text.h"
#include "tandem/core/error.h"

namespace train {

using Json = nlohmann::ordered_json;

namespace {

// The lines of the first `steps` updates.
std::string first_lines(const std::string& path, std::int64_t steps) {
  std::ifstream file(path);
  std::string lines;
  for (std::string line; steps > 0 && std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer() && json["step"] <= steps)
      lines += line + '\n';
  }
  return lines;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path, std::int64_t steps) : path_(path) {
  if (path_.empty()) return;
  if (steps > 0) {  // a kill at any moment leaves the lines that were there, or those that are kept
    const std::string temporary = path_ + ".tmp";
    std::ofstream kept(temporary, std::ios::trunc);
    kept << first_lines(path_, steps);
    kept.close();
    if (!kept || std::rename(temporary.c_str(), path_.c_str()) != 0)
      throw tandem::ConfigError("--log-json '" + path_ + "' cannot be continued: '" + temporary +
                                "' cannot be written; is the disk full?");
  }
  file_.open(path_, steps > 0 ? std::ios::app : std::ios::trunc);
  if (!file_) throw tandem::ConfigError("--log-json '" + path_ + "' cannot be written");
}

void MetricsLog::write(const UpdateMetrics& metrics) {
  if (!file_.is_open()) return;
  const Json line{{"step", metrics.step}, {"epoch", metrics.epoch},
                  {"loss", metrics.loss}, {"grad_norm", metrics.grad_norm},
                  {"lr", metrics.lr},     {"samples_per_second", metrics.samples_per_second}};
  file_ << tandem::io::shown_json(line) << '\n';
}

void MetricsLog::finish(const FinalMetrics& metrics) {
  if (!file_.is_open()) return;
  Json last;
  for (const auto& [name, value] : metrics.verdict.figures) last[name] = value;
  last["train_seconds"] = metrics.train_seconds;
  last["samples_per_second"] = metrics.samples_per_second;
  last["startup_seconds"] = metrics.startup_seconds;
  last["peak_rss_mb"] = metrics.peak_rss_mb;
  if (!metrics.sample.empty()) last["sample"] = metrics.sample;
  const Json line{{"final", last}};
  file_ << tandem::io::shown_json(line) << std::endl;
  if (!file_) throw tandem::Error("'" + path_ + "' could not be written completely; is the disk full?");
}

double Throughput::update(std::int64_t samples) {
  const double at = now();
  const double rate = static_cast<double>(samples) / (at - last_update_);
  last_update_ = at;
  updates_ += 1;
  samples_ += samples;
  if (updates_ == kWarmupUpdates) {
    warmup_samples_ = samples_;
    warmup_end_ = at;
  }
  return rate;
}

double Throughput::samples_per_second() const {
  const double seconds = last_update_ - (updates_ > kWarmupUpdates ? warmup_end_ : 0);
  const std::int64_t samples = samples_ - (updates_ > kWarmupUpdates ? warmup_samples_ : 0);
  return seconds > 0 ? static_cast<double>(samples) / seconds : 0.0;
}

}  // namespace train
