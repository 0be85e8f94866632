#include "metrics.h"

#include <fstream>

#include <nlohmann/json.hpp>

#include "io/append_file.h"
#include "io/json_text.h"
#include "tandem/core/error.h"

namespace train {

using Json = nlohmann::ordered_json;

namespace {

constexpr std::size_t kMostPending = 64 << 20;  // bytes

// Whether a line is of the first `steps` updates, or of a judgement after at most `judged_at`.
bool is_of(const nlohmann::json& line, std::int64_t steps, std::int64_t judged_at) {
  if (!line.is_object()) return false;
  const bool judged = line.contains("eval") && line["eval"].is_object();
  const nlohmann::json& values = judged ? line["eval"] : line;
  return values.contains("step") && values["step"].is_number_integer() &&
         values["step"] <= (judged ? judged_at : steps);
}

// Bytes of such lines, which are there from the beginning on.
std::uint64_t bytes_of(const std::string& path, std::int64_t steps, std::int64_t judged_at) {
  std::ifstream file(path, std::ios::binary);
  std::uint64_t bytes = 0;
  for (std::string line; steps > 0 && std::getline(file, line) && !file.eof(); bytes += line.size() + 1) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!is_of(json, steps, judged_at)) break;
  }
  return bytes;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path) : path_(path) {
  if (path_.empty()) return;
  try {
    file_ = std::make_unique<tandem::io::AppendFile>(path_, tandem::io::Unread::wait);
  } catch (const tandem::Error& error) {
    throw tandem::ConfigError(std::string("--log-json ") + error.what());
  }
}

MetricsLog::~MetricsLog() = default;

void MetricsLog::begin(std::int64_t steps, std::int64_t judged_at) {
  if (!file_ || !file_->can_be_cut()) return;
  try {
    file_->cut(bytes_of(path_, steps, judged_at));
  } catch (const tandem::Error& error) {
    throw tandem::ConfigError(std::string("--log-json ") + error.what());
  }
}

std::string MetricsLog::write(const UpdateMetrics& metrics) {
  const Json line{{"step", metrics.step}, {"epoch", metrics.epoch},
                  {"loss", metrics.loss}, {"grad_norm", metrics.grad_norm},
                  {"lr", metrics.lr},     {"samples_per_second", metrics.samples_per_second}};
  return put(tandem::io::shown_json(line) + '\n');
}

std::string MetricsLog::write(std::int64_t step, std::int64_t epoch, const Verdict& verdict) {
  Json values{{"step", step}, {"epoch", epoch}};
  for (const auto& [name, value] : verdict.figures) values[name] = value;
  return put(tandem::io::shown_json(Json{{"eval", values}}) + '\n');
}

std::string MetricsLog::put(const std::string& line) {
  if (!file_ || ended_) return {};
  const bool had_problem = !problem_.empty();
  pending_ += line;
  try {
    pending_.erase(0, file_->append_some(pending_));
    problem_.clear();
  } catch (const tandem::Error& error) {
    problem_ = error.what();
    ended_ = !file_->can_be_cut();  // a reader has gone
  }
  if (pending_.size() > kMostPending) {
    if (problem_.empty()) problem_ = path_ + ": its reader takes nothing";
    ended_ = true;
  }
  return had_problem ? std::string() : problem_;
}

std::string MetricsLog::finish(const FinalMetrics& metrics, const std::function<bool()>& stopped) {
  Json last;
  for (const auto& [name, value] : metrics.verdict.figures) last[name] = value;
  last["train_seconds"] = metrics.train_seconds;
  last["samples_per_second"] = metrics.samples_per_second;
  last["startup_seconds"] = metrics.startup_seconds;
  last["peak_rss_mb"] = metrics.peak_rss_mb;
  if (!metrics.left_out.empty()) last["left_out"] = metrics.left_out;
  if (!metrics.sample.empty()) last["sample"] = metrics.sample;
  put(tandem::io::shown_json(Json{{"final", last}}) + '\n');
  while (!pending_.empty() && problem_.empty()) {
    const bool last_try = stopped();
    file_->wait_for_room(100);
    put("");
    if (last_try) break;
  }
  if (!pending_.empty() && problem_.empty()) return path_ + ": its reader has not taken all";
  return problem_;
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
