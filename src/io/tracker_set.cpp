#include "tandem/io/tracker_set.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <torch/version.h>

#include "comm/error_text.h"
#include "io/png_encoder.h"
#include "tandem/core/error.h"
#include "tandem/version.h"

namespace tandem::io {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

void check_images(const std::string& name, const at::Tensor& images, std::size_t captions) {
  const auto require = [&](bool holds, const std::string& otherwise) {
    if (!holds) throw ConfigError("images '" + name + "': " + otherwise);
  };
  require(images.defined() && images.dim() == 4 && images.size(2) > 0 && images.size(3) > 0,
          "need a tensor [N, C, H, W], not " + (images.defined() ? c10::str(images.sizes()) : "an undefined one"));
  const std::int64_t channels = images.size(1);
  require(channels == 1 || channels == 3 || channels == 4,
          "have " + std::to_string(channels) + " channels; 1, 3 and 4 can be shown");
  require(
      images.scalar_type() == at::kByte || images.is_floating_point(),
      std::string("are of type ") + c10::toString(images.scalar_type()) + "; use uint8, or floating-point from 0 to 1");
  require(captions == 0 || captions == static_cast<std::size_t>(images.size(0)),
          std::to_string(captions) + " captions for " + std::to_string(images.size(0)) + " of them");
}

// uint8 [N, H, W, C], on the CPU.
at::Tensor bytes_of(const at::Tensor& images) {
  const at::Tensor rows = images.detach().to(at::kCPU).permute({0, 2, 3, 1});
  if (rows.scalar_type() == at::kByte) return rows.contiguous();
  return (rows.to(at::kFloat).nan_to_num(0).clamp(0, 1) * 255).round().to(at::kByte).contiguous();
}

std::vector<Image> encode(const at::Tensor& images, const std::vector<std::string>& captions) {
  const at::Tensor bytes = bytes_of(images);
  std::vector<Image> encoded;
  for (std::int64_t i = 0; i < bytes.size(0); ++i) {
    Image image{.height = bytes.size(1),
                .width = bytes.size(2),
                .channels = static_cast<int>(bytes.size(3)),
                .png = {},
                .caption = captions.empty() ? "" : captions[static_cast<std::size_t>(i)]};
    image.png = encode_png(bytes[i].const_data_ptr<std::uint8_t>(), image.height, image.width, image.channels);
    encoded.push_back(std::move(image));
  }
  return encoded;
}

void check_matrix(const std::string& name, const Matrix& matrix) {
  const std::size_t size = matrix.labels.size();
  const auto fits = [size](const auto& row) { return row.size() == size; };
  if (matrix.values.size() != size || !std::all_of(matrix.values.begin(), matrix.values.end(), fits))
    throw ConfigError("matrix '" + name + "' needs " + std::to_string(size) +
                      " rows and columns, as many as it has labels");
}

}  // namespace

std::string_view name_of(RunStatus status) {
  switch (status) {
    case RunStatus::finished: return "finished";
    case RunStatus::interrupted: return "interrupted";
    case RunStatus::failed: break;
  }
  return "failed";
}

TrackerSet::TrackerSet(bool main, std::function<void(const std::string&)> on_warning)
    : main_(main), on_warning_(std::move(on_warning)) {}

TrackerSet::~TrackerSet() {
  if (!begun_) return;
  try {
    finish(RunStatus::failed);
  } catch (...) {  // the warning's receiver
  }
}

void TrackerSet::add(std::unique_ptr<Tracker> tracker) {
  if (begun_) throw ConfigError("tracker '" + tracker->name() + "' is added to a run that has begun; add it before");
  if (main_) trackers_.push_back(std::move(tracker));
}

void TrackerSet::check_begun() const {
  if (main_ && !begun_) throw ConfigError("trackers record a run between begin() and finish(); call begin() first");
}

void TrackerSet::for_each(const std::function<void(Tracker&)>& call) {
  std::vector<std::string> warnings;
  std::erase_if(trackers_, [&](const std::unique_ptr<Tracker>& tracker) {
    try {
      call(*tracker);
      return false;
    } catch (...) {
      warnings.push_back("tracker '" + tracker->name() +
                         "' failed and is left out from now on: " + text_of(std::current_exception()));
      return true;
    }
  });
  if (!on_warning_) return;
  for (const std::string& warning : warnings) on_warning_(warning);
}

void TrackerSet::begin(Run run) {
  if (!main_) return;
  if (begun_) throw ConfigError("trackers record run '" + run.name + "' while another has not finished");
  begun_ = true;
  run.versions.emplace_back("tandem", TANDEM_VERSION);
  run.versions.emplace_back("libtorch", TORCH_VERSION);
  for_each([&, time = now()](Tracker& tracker) { tracker.begin(run, time); });
}

void TrackerSet::log(std::span<const Scalar> values, std::int64_t step) {
  check_begun();
  if (!recording()) return;
  for_each([&, when = Moment{step, now()}](Tracker& tracker) { tracker.log(values, when); });
}

void TrackerSet::log_images(const std::string& name, const at::Tensor& images, std::int64_t step,
                            const std::vector<std::string>& captions) {
  check_begun();
  if (!recording()) return;
  check_images(name, images, captions.size());
  const std::vector<Image> encoded = encode(images, captions);
  for_each([&, when = Moment{step, now()}](Tracker& tracker) { tracker.log_images(name, encoded, when); });
}

void TrackerSet::log_histogram(const std::string& name, const at::Tensor& values, std::int64_t step) {
  check_begun();
  if (!recording()) return;
  const Histogram histogram = histogram_of(values);
  for_each([&, when = Moment{step, now()}](Tracker& tracker) { tracker.log_histogram(name, histogram, when); });
}

void TrackerSet::log_text(const std::string& name, const std::string& text, std::int64_t step) {
  check_begun();
  if (!recording()) return;
  for_each([&, when = Moment{step, now()}](Tracker& tracker) { tracker.log_text(name, text, when); });
}

void TrackerSet::log_matrix(const std::string& name, const Matrix& matrix, std::int64_t step) {
  check_begun();
  if (!recording()) return;
  check_matrix(name, matrix);
  for_each([&, when = Moment{step, now()}](Tracker& tracker) { tracker.log_matrix(name, matrix, when); });
}

void TrackerSet::log_event(const std::string& name, const std::string& detail, std::int64_t step) {
  check_begun();
  if (!recording()) return;
  for_each([&, when = Moment{step, now()}](Tracker& tracker) { tracker.log_event(name, detail, when); });
}

void TrackerSet::finish(RunStatus status, std::span<const Scalar> values) {
  check_begun();
  begun_ = false;
  for_each([&, time = now()](Tracker& tracker) { tracker.end(status, values, time); });
  trackers_.clear();
}

Histogram histogram_of(const at::Tensor& values, int bins) {
  if (bins < 1) throw ConfigError("a histogram of " + std::to_string(bins) + " bins; use 1 or more");
  if (!values.defined() || values.is_complex()) throw ConfigError("a histogram needs a tensor of real numbers");
  const at::Tensor all = values.detach().to(at::kCPU, at::kDouble).flatten();
  const at::Tensor finite = all.masked_select(all.isfinite());
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  Histogram histogram{.min = kNan, .max = kNan, .count = finite.numel(), .edges = {}, .counts = {}};
  if (histogram.count == 0) return histogram;
  const std::span<const double> numbers(finite.const_data_ptr<double>(), static_cast<std::size_t>(finite.numel()));
  const auto [least, greatest] = std::minmax_element(numbers.begin(), numbers.end());
  histogram.min = *least;
  histogram.max = *greatest;
  const auto parts = static_cast<std::size_t>(histogram.min < histogram.max ? bins : 1);
  // Halves, since the difference of two finite numbers need not be finite.
  const double half_width = (histogram.max / 2 - histogram.min / 2) / static_cast<double>(parts);
  for (std::size_t i = 0; i < parts; ++i)
    histogram.edges.push_back(histogram.min + 2 * (static_cast<double>(i) * half_width));
  histogram.edges.push_back(histogram.max);
  histogram.counts.assign(parts, 0);
  for (const double number : numbers) {
    histogram.sum += number;
    histogram.sum_squares += number * number;
    const auto next = std::upper_bound(histogram.edges.begin() + 1, histogram.edges.end() - 1, number);
    histogram.counts[static_cast<std::size_t>(next - histogram.edges.begin()) - 1] += 1;
  }
  return histogram;
}

}  // namespace tandem::io
