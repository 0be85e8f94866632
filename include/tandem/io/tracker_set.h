#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tandem/io/tracker.h"

namespace at {
class Tensor;
}

namespace tandem::io {

/// The trackers of a run, which all hear the same:
///
///     io::TrackerSet trackers(accelerator.is_main(), accelerator.state().config.on_warning);
///     trackers.add(io::json_lines_tracker("runs/1"));
///     trackers.add(io::tensorboard_tracker("runs/1"));
///     trackers.begin({.name = "mnist", .config = {{"lr", 1e-3}, {"batch_size", 64}}});
///     trackers.log({{"train/loss", loss}, {"train/lr", 1e-3}}, step);
///     trackers.finish(io::RunStatus::finished, {{"test/accuracy", accuracy}});
///
/// Only the main rank's set records. On the other ranks every call returns at once: work out what costs something where
/// recording() is true. Nothing is collective.
///
/// A tracker that throws does not end training: it is named to `on_warning`, once, and left out from then on. Belongs
/// to one thread.
class TrackerSet {
 public:
  /// `main`: whether this rank's calls are recorded. `on_warning` may be empty, then failures are silent.
  explicit TrackerSet(bool main, std::function<void(const std::string&)> on_warning = {});

  /// Ends a run that has not ended, as failed.
  ~TrackerSet();
  TrackerSet(const TrackerSet&) = delete;
  TrackerSet& operator=(const TrackerSet&) = delete;

  /// Before `begin`. Throws ConfigError after it.
  void add(std::unique_ptr<Tracker> tracker);

  /// True where there is a tracker left that records.
  bool recording() const { return !trackers_.empty(); }

  /// Begins the run. Everything else is for a run that has begun, and throws ConfigError otherwise (on the main rank).
  void begin(Run run);

  /// Numbers of one moment.
  void log(std::span<const Scalar> values, std::int64_t step);

  /// Numbers of one moment, as a list in braces.
  void log(std::initializer_list<Scalar> values, std::int64_t step) {
    log(std::span(values.begin(), values.size()), step);
  }

  /// `images` is [N, C, H, W] with 1, 3 or 4 channels (grey, colours, with alpha), uint8 or floating-point from 0 to 1
  /// (what is beyond is cut off), on any device; one caption an image, or none. Throws ConfigError for anything else.
  void log_images(const std::string& name, const at::Tensor& images, std::int64_t step,
                  const std::vector<std::string>& captions = {});

  /// The values of a real tensor of any sizes and device; see histogram_of.
  void log_histogram(const std::string& name, const at::Tensor& values, std::int64_t step);

  /// A text, such as a sample of what a model writes.
  void log_text(const std::string& name, const std::string& text, std::int64_t step);

  /// Throws ConfigError when rows and columns are not as many as the labels.
  void log_matrix(const std::string& name, const Matrix& matrix, std::int64_t step);

  /// Something happened, such as a checkpoint that was written: `detail` says more, its path for instance.
  void log_event(const std::string& name, const std::string& detail, std::int64_t step);

  /// Ends the run with its results, and lets go of the trackers.
  void finish(RunStatus status, std::span<const Scalar> values);

  /// Ends the run with its results as a list in braces.
  void finish(RunStatus status, std::initializer_list<Scalar> values = {}) {
    finish(status, std::span(values.begin(), values.size()));
  }

 private:
  void for_each(const std::function<void(Tracker&)>& call);
  void check_begun() const;

  const bool main_;
  const std::function<void(const std::string&)> on_warning_;
  bool begun_ = false;
  std::vector<std::unique_ptr<Tracker>> trackers_;
};

/// The distribution of the finite values of a real tensor, in `bins` parts of equal width from the least to the
/// greatest; one part, of no width, when all are the same. Throws ConfigError when `bins` is below 1, or `values`
/// undefined or complex.
Histogram histogram_of(const at::Tensor& values, int bins = 64);

}  // namespace tandem::io
