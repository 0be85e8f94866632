#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "inputs.h"
#include "net.h"
#include "options.h"
#include "records.h"
#include "tandem/tandem.h"
#include "training_state.h"

namespace train {

/// How good the network is while it trains and at the end, and what follows from that: the best weights are kept, and
/// training ends when they get no better. One a rank, which all judge together.
class Judging {
 public:
  /// What is judged: the network as it is, and its averaged weights, if there are any.
  struct Subject {
    tandem::nn::Model<Net>& model;
    tandem::optim::ExponentialMovingAverage* average;  ///< null: none
  };

  /// All that is given here outlives the object.
  Judging(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Subject subject,
          Records& records, TrainingState& state);

  /// Judges when --eval-every says so, after the update that was just made. Collective.
  void after_update(std::int64_t epoch);

  /// The same after an epoch.
  void after_epoch(std::int64_t epoch);

  /// Judges the trained network; nothing when a stop is asked for. Collective.
  std::optional<Verdict> at_end(std::int64_t epoch);

  /// Whether it has got no better for as long as --early-stop says.
  bool ends_training() const;

  /// Whether a stop was asked for while it judged.
  bool interrupted() const { return interrupted_; }

  /// What of the best weights could not be kept, and why.
  const std::vector<std::string>& unwritten() const { return unwritten_; }

  /// The best of them for people; empty without --save-best.
  std::string best() const;

 private:
  std::optional<Verdict> judge(std::int64_t epoch, bool at_end);
  std::optional<Verdict> look(bool at_end);
  void take(const Verdict& verdict);
  void keep_best(bool is_first);
  void keep_earlier(const std::string& path);
  bool write_best_weights(bool is_first);
  bool try_to(const std::function<void()>& write);

  tandem::Accelerator& accelerator_;
  const Options& options_;
  const Inputs& inputs_;
  Subject subject_;
  Records& records_;
  TrainingState& state_;
  std::optional<Verdict> last_;  // of the weights after state_.judged_at updates
  std::vector<std::string> unwritten_;
  bool interrupted_ = false;
};

/// Throws tandem::ConfigError for figures of --save-best and --early-stop that the task does not have.
void check_figures(const Options& options, const Task& task);

/// Where --save-best writes the weights of the best network; empty: nowhere.
std::string best_weights_path(const Options& options);

/// Reads "METRIC:PATIENCE" of --early-stop. Throws tandem::ConfigError.
EarlyStop read_early_stop(const std::string& text);

}  // namespace train
