#include "tracking.h"

#include <array>
#include <set>
#include <string_view>
#include <utility>

#include <c10/core/CachingDeviceAllocator.h>

#include "model_flags.h"

namespace train {
namespace {

namespace io = tandem::io;

constexpr std::size_t kSamples = 2, kNorm = 3, kTimes = 4;  // places of what is sent, after that of scalars_of
constexpr std::array<const char*, tandem::trace::kKinds> kParts{"data_wait",     "forward",   "backward",
                                                                "communication", "optimizer", "other"};

std::unique_ptr<io::Tracker> make_tracker(const std::string& kind, const std::string& directory) {
  if (kind == "jsonl") return io::json_lines_tracker(directory);
  if (kind == "csv") return io::csv_tracker(directory);
  return io::tensorboard_tracker(directory);
}

// MB that are allocated on a GPU; nothing for the CPU, and for allocators that do not count.
std::optional<double> allocated_mb(c10::Device device) {
  if (device.is_cpu()) return {};
  auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  if (!allocator) return {};
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return static_cast<double>(allocator->getDeviceStats(device.index()).allocated_bytes[kAll].current) / 1e6;
}

std::vector<std::string> names_of_parts(int ranks) {
  std::vector<std::string> names;
  for (int rank = 0; rank < ranks; ++rank)
    for (const char* part : kParts) names.push_back("perf/rank" + std::to_string(rank) + "/" + part + "_ms");
  return names;
}

using Figures = std::vector<std::pair<std::string, double>>;

// The figures of a verdict with "eval/accuracy" for "accuracy", and "eval/loss" for "validation_loss".
Figures in_group(const std::string& group, Figures figures) {
  constexpr std::string_view kSame = "validation_";
  for (auto& [name, value] : figures) name = group + (name.starts_with(kSame) ? name.substr(kSame.size()) : name);
  return figures;
}

std::vector<io::Scalar> borrowed(const Figures& figures) {
  std::vector<io::Scalar> scalars;
  for (const auto& [name, value] : figures) scalars.push_back({name, value});
  return scalars;
}

}  // namespace

Tracking::Tracking(tandem::Accelerator& accelerator, const Options& options, const tandem::trace::Recorder* recorder)
    : accelerator_(accelerator),
      every_(options.log_with.empty() ? 0 : options.log_every),
      trackers_(accelerator.is_main(), accelerator.state().config.on_warning) {
  if (!enabled()) return;
  if (recorder) {
    parts_.emplace(*recorder);
    part_names_ = names_of_parts(accelerator.world_size());
  }
  for (const std::string& kind : std::set<std::string>(options.log_with.begin(), options.log_with.end()))
    trackers_.add(make_tracker(kind, options.project_dir));
}

void Tracking::begin(const Options& options, std::int64_t steps) {
  if (!enabled()) return;
  recorded_ = Clock::now();
  trackers_.begin({.name = name_of(options.model),
                   .config = options.flags,
                   .ranks = accelerator_.world_size(),
                   .device = c10::DeviceTypeName(accelerator_.device().type(), true),
                   .first_step = steps > 0 ? steps + 1 : 0});
}

void Tracking::count(const Update& update) {
  if (!enabled()) return;
  last_ = update;
  losses_.add(update.losses);
  samples_ += update.samples;
  updates_ += 1;
}

// What this rank knows of the updates that are recorded, as it was after the last of them.
struct Tracking::Means {
  Update last;
  Losses losses;
  std::int64_t updates;
  double seconds, rss_mb;
  std::optional<double> gpu_mb;
};

Sent Tracking::record() {
  if (updates_ == 0) return {};
  const auto now = Clock::now();
  const Means means{.last = last_,
                    .losses = std::exchange(losses_, {}),
                    .updates = std::exchange(updates_, 0),
                    .seconds = std::chrono::duration<double>(now - std::exchange(recorded_, now)).count(),
                    .rss_mb = trackers_.recording() ? rss_mb() : 0,
                    .gpu_mb = trackers_.recording() ? allocated_mb(accelerator_.device()) : std::nullopt};
  std::vector<DeferredScalars::Scalar> scalars = scalars_of(means.losses);
  scalars.emplace_back(static_cast<double>(std::exchange(samples_, 0)));
  scalars.emplace_back(last_.grad_norm.defined() ? DeferredScalars::Scalar(last_.grad_norm) : 0.0);
  if (parts_)
    for (const double seconds : parts_->take()) scalars.emplace_back(seconds);
  return {std::move(scalars), [this, means](const DeferredScalars::Arrived& sums) {
            if (trackers_.recording()) log_means(means, sums);
          }};
}

void Tracking::log_means(const Means& of, const DeferredScalars::Arrived& sums) {
  const double updates = static_cast<double>(of.updates);
  std::vector<io::Scalar> values{{"train/loss", mean_of(of.losses, sums)},
                                 {"train/lr", of.last.lr},
                                 {"train/epoch", static_cast<double>(of.last.epoch)},
                                 {"perf/samples_per_second", sums.sum(kSamples) / of.seconds},
                                 {"perf/step_ms", 1e3 * of.seconds / updates}};
  if (of.last.grad_norm.defined()) values.push_back({"train/grad_norm", sums.of(0, kNorm)});
  for (std::size_t i = 0; i < part_names_.size(); ++i)
    values.push_back({part_names_[i], 1e3 * sums.of(i / kParts.size(), kTimes + i % kParts.size()) / updates});
  values.push_back({"memory/rss_mb", of.rss_mb});
  if (of.gpu_mb) values.push_back({"memory/gpu_mb", *of.gpu_mb});
  trackers_.log(values, of.last.step);
}

void Tracking::log_event(const std::string& name, const std::string& detail, std::int64_t steps) {
  if (enabled()) trackers_.log_event(name, detail, steps);
}

void Tracking::log_verdict(const Verdict& verdict) {
  if (!enabled()) return;
  trackers_.log(borrowed(in_group("eval/", verdict.figures)), step());
}

void Tracking::finish(io::RunStatus status, const FinalMetrics& metrics) {
  if (!trackers_.recording()) return;
  if (!metrics.sample.empty()) trackers_.log_text("sample", metrics.sample, step());
  Figures results;
  if (status != io::RunStatus::interrupted) results = in_group("test/", metrics.verdict.figures);
  results.emplace_back("train/steps", static_cast<double>(step()));
  results.emplace_back("train/seconds", metrics.train_seconds);
  results.emplace_back("perf/samples_per_second", metrics.samples_per_second);
  results.emplace_back("perf/startup_seconds", metrics.startup_seconds);
  results.emplace_back("memory/peak_rss_mb", metrics.peak_rss_mb);
  trackers_.finish(status, borrowed(results));
}

}  // namespace train
