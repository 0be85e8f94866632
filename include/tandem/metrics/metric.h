#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/runtime/rank.h"

/// \file
/// How good outputs are, over all ranks: exact, each sample once, and the same bits on any number of ranks.
namespace tandem::metrics {

/// How the states of ranks become one.
enum class Merge : std::uint8_t {
  sum,  ///< added up: integers only, of the same shape on all ranks (exact_sum.h has sums of float64)
  join  ///< rows of all ranks one after the other; results must not depend on their order
};

/// A measure of a model's outputs. A rank gives it the batches that it sees, and all ranks ask for the result:
///
///     metrics::TopKAccuracy accuracy(accelerator, {.k = 5});
///     for (auto& [images, labels] : loader) accuracy.update(model(images), labels);
///     const double share = accuracy.compute().item<double>();
///
/// A metric of one's own derives from it. It adds its states in the constructor, and says what a batch does to them and
/// what they come to:
///
///     struct ShareOfZeros : metrics::Metric {
///       explicit ShareOfZeros(Rank& rank) : Metric(rank, "ShareOfZeros") {
///         add_state("zeros", metrics::Merge::sum, at::zeros({}, at::kLong));
///         add_state("all", metrics::Merge::sum, at::zeros({}, at::kLong));
///       }
///       void add(const at::Tensor& outputs, const at::Tensor&) override {
///         state("zeros").add_((outputs == 0).sum());
///         state("all").add_(outputs.numel());
///       }
///       at::Tensor result(const States& of_all) const override {
///         return of_all.at("zeros").to(at::kDouble) / of_all.at("all").to(at::kDouble);
///       }
///     };
class Metric {
 public:
  virtual ~Metric() = default;
  Metric(const Metric&) = delete;
  Metric& operator=(const Metric&) = delete;

  /// Takes the outputs and targets of a batch, one sample a row (dim 0) of each, on any device. Within a loop over a
  /// prepared loader the samples that the loader repeated to fill its last step are left out, as gather_for_metrics
  /// does: give it a batch as the loader has it, not parts of one, and not flattened. Not collective. Throws DataError
  /// for what the metric cannot judge, and is as before then.
  void update(const at::Tensor& outputs, const at::Tensor& targets);

  /// The result over what all ranks have been given since the last reset, float64 or int64 on the CPU, the same on all
  /// ranks. The metric stays as it is, and may go on. Collective. Throws DataError on all ranks when none has samples.
  at::Tensor compute();

  /// Forgets what it was given. Not collective.
  void reset();

 protected:
  /// Merged states, by name.
  using States = std::map<std::string, at::Tensor>;

  /// `rank` is the accelerator, and outlives the metric. `name` is for errors.
  Metric(Rank& rank, std::string name);

  /// Adds a state that is `zero`, on the CPU, as long as nothing was given; for Merge::join one of no rows. Throws
  /// ConfigError for a sum of what are no integers.
  void add_state(const std::string& name, Merge merge, at::Tensor zero);

  /// A state that is summed up, to be changed in place.
  at::Tensor& state(const std::string& name);

  /// Adds rows to a state that is joined.
  void append(const std::string& name, const at::Tensor& rows);

  /// Adds a batch to the states; of as many rows both, one or more, without gradients. Throws DataError by refuse
  /// before it changes anything.
  virtual void add(const at::Tensor& outputs, const at::Tensor& targets) = 0;

  /// What the merged states come to.
  virtual at::Tensor result(const States& of_all) const = 0;

  /// Throws a DataError that names the metric.
  [[noreturn]] void refuse(const std::string& what) const;

 private:
  struct State {
    Merge merge;
    at::Tensor zero, sum;
    std::vector<at::Tensor> rows;
  };

  std::int64_t rows_to_keep(std::int64_t rows) const;
  States own_states() const;

  Rank& rank_;
  std::string name_;
  std::int64_t samples_ = 0;
  std::map<std::string, State> states_;
};

}  // namespace tandem::metrics
