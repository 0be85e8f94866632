#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

/// \file
/// What trackers record of a run. TrackerSet is what programs use; a tracker of your own derives from Tracker.
namespace tandem::io {

/// A setting of a run.
using ConfigValue = std::variant<bool, std::int64_t, double, std::string>;

/// Settings by name, in order.
using Config = std::vector<std::pair<std::string, ConfigValue>>;

/// What is known of a run when it begins.
struct Run {
  std::string name;             ///< as people see it
  Config config = {};           ///< hyper-parameters and other settings
  int ranks = 1;                ///< that train
  std::string device = "cpu";   ///< kind of the ranks' devices
  std::int64_t first_step = 0;  ///< where the run goes on; what was recorded here of this step and later ones is void
  Config versions = {};         ///< of programs and libraries; TrackerSet::begin adds Tandem's and LibTorch's
};

/// When something was recorded.
struct Moment {
  std::int64_t step = 0;  ///< usually optimizer updates
  double time = 0;        ///< seconds since 1970
};

/// A number by name. A '/' in the name puts it into a group. The name is borrowed: it lives as long as the call.
struct Scalar {
  std::string_view name;  ///< such as "train/loss"
  double value = 0;       ///< may be infinite or NaN
};

/// A picture as a PNG file with 8 bits a channel.
struct Image {
  std::int64_t height = 0,  ///< in pixels
      width = 0;            ///< in pixels
  int channels = 1;         ///< 1: grey, 3: red, green, blue, 4: with alpha
  std::string png;          ///< the file's bytes
  std::string caption;      ///< may be empty
};

/// How values are distributed. counts[i] of them are in [edges[i], edges[i + 1]), the last one in both edges.
struct Histogram {
  double min = 0,                    ///< the least value; NaN when there are none
      max = 0;                       ///< the greatest; likewise
  double sum = 0,                    ///< of the values
      sum_squares = 0;               ///< of their squares
  std::int64_t count = 0;            ///< of values; those that are infinite or NaN are left out
  std::vector<double> edges;         ///< rising; one more than counts
  std::vector<std::int64_t> counts;  ///< of the values between two edges
};

/// A table of numbers with as many rows and columns as labels, such as a confusion matrix (rows: the true class).
struct Matrix {
  std::vector<std::string> labels;          ///< of the rows, and of the columns
  std::vector<std::vector<double>> values;  ///< by row
};

/// How a run ended.
enum class RunStatus {
  finished,     ///< it did all that it was to do
  interrupted,  ///< somebody stopped it
  failed        ///< by an error
};

/// "finished", "interrupted", "failed".
std::string_view name_of(RunStatus status);

/// Records a run somewhere: in a file, or with a service. A TrackerSet calls it, on one thread, `begin` first and `end`
/// last. What a tracker has no place for it leaves out, which is what these functions do. An exception from any of them
/// means that the tracker has failed: it is not called again.
class Tracker {
 public:
  virtual ~Tracker() = default;

  /// Names the tracker in warnings.
  virtual std::string name() const = 0;

  /// A run begins, or goes on.
  virtual void begin(const Run& /*run*/, double /*time*/) {}

  /// Numbers of one moment.
  virtual void log(std::span<const Scalar> /*values*/, Moment /*when*/) {}

  /// A text, such as a sample of what a model writes.
  virtual void log_text(const std::string& /*name*/, const std::string& /*text*/, Moment /*when*/) {}

  /// How the values of a tensor are distributed.
  virtual void log_histogram(const std::string& /*name*/, const Histogram& /*histogram*/, Moment /*when*/) {}

  /// Pictures under one name, in order.
  virtual void log_images(const std::string& /*name*/, std::span<const Image> /*images*/, Moment /*when*/) {}

  /// A table of numbers.
  virtual void log_matrix(const std::string& /*name*/, const Matrix& /*matrix*/, Moment /*when*/) {}

  /// Something happened: a checkpoint was written, the run was paused.
  virtual void log_event(const std::string& /*name*/, const std::string& /*detail*/, Moment /*when*/) {}

  /// With the run's results.
  virtual void end(RunStatus /*status*/, std::span<const Scalar> /*values*/, double /*time*/) {}
};

}  // namespace tandem::io
