#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data_flags.h"
#include "fine_tuning.h"
#include "tandem/io/tracker.h"
#include "tandem/models/gpt.h"
#include "tandem/runtime/launch_config.h"
#include "tandem/runtime/profile.h"

namespace CLI {
class App;
}  // namespace CLI

namespace train {

struct FoundCheckpoint;

enum class ModelKind { mlp, cnn, resnet18, resnet34, resnet50, vit_b_16, script, gpt, gpt2 };
enum class OptimizerKind { sgd, adamw, lion, muon, adafactor };

/// The course of the learning rate from --lr, over the updates after the warm-up.
enum class SchedulerKind {
  constant,
  step,             ///< * 0.1 after each third
  multi_step,       ///< * 0.1 at 1/2 and at 3/4
  exponential,      ///< by the same factor each update, to 1/100
  linear,           ///< to 0
  polynomial,       ///< to 0, with power 2
  cosine,           ///< to 0
  cosine_restarts,  ///< to 0 in three cycles, each twice as long as the one before
  one_cycle,        ///< up from --lr / 25 for 30 %, then down to --lr / 250000; the momentum, if any, the other way
  plateau,          ///< * 0.1 when the mean training loss of two epochs in a row was not the lowest
};

/// The language models' sizes.
using GptOptions = tandem::models::GptOptions;

/// When to end a training that gets no better.
struct EarlyStop {
  std::string metric;
  std::int64_t patience = 0;  ///< judgements that may be no better than the best one before
};

/// Whether steps are replayed as CUDA graphs; automatic: where that is faster.
enum class CudaGraphs : std::uint8_t { automatic, on, off };

/// What the command line asks for, checked as far as it can be without data.
struct Options {
  tandem::LaunchConfig launch;
  tandem::PartialState machine;  // that `launch` runs on, examined once for everybody

  ModelKind model = ModelKind::mlp;
  std::string script;                             // the TorchScript file that is trained; empty: another model
  std::vector<std::int64_t> hidden = {512, 512};  // widths of the mlp's hidden layers
  GptOptions gpt;                                 // or gpt2
  bool checkpoint_activations = false;
  std::int64_t sample_bytes = 200;  // of text that the gpt writes at the end

  DataOptions data;

  std::int64_t epochs = 4;
  std::optional<std::int64_t> max_steps;  // optimizer updates
  std::int64_t batch_size = 64;           // of the data loader: a rank's, or all ranks' with split_batches
  bool finds_batch_size = false;          // batch_size is not known yet: as many as fit
  bool drop_last = false;

  OptimizerKind optimizer = OptimizerKind::adamw;
  double lr = 1e-3;
  double momentum = 0.0;
  double weight_decay = 0.0;
  FineTuning fine_tuning;
  std::optional<double> clip_grad_norm;
  SchedulerKind scheduler = SchedulerKind::constant;
  std::int64_t warmup_steps = 0;            // updates of linear growth before it
  std::optional<double> warmup_epochs;      // or epochs
  std::optional<std::int64_t> check_exact;  // updates to compare, instead of training

  double label_smoothing = 0.0;
  std::optional<double> ema;               // decay of averaged weights
  std::optional<std::int64_t> eval_every;  // updates; 0: at the end only; nothing: each epoch too
  std::string save_best;                   // figure by which the best weights are kept; empty: they are not
  std::optional<EarlyStop> early_stop;

  std::string init_weights, save_weights, log_json;  // files; empty: none
  std::optional<std::int64_t> save_every;            // updates from one checkpoint to the next
  std::string resume;                                // a checkpoint, or auto; empty: begin anew
  std::shared_ptr<const FoundCheckpoint> found;      // what it comes to; null: begin anew
  tandem::ProfileOptions profile;                    // without a directory: none

  std::vector<std::string> log_with;           // names of trackers; empty: none
  bool report = false;                         // report.html of it
  std::string project_dir;                     // what they write into
  std::int64_t log_every = 10;                 // updates
  tandem::io::Config flags;                    // all of them, as they act
  std::vector<std::string> resumes_otherwise;  // what differs from the checkpoint's flags, for people
  // Whose learning rate and so on count, with --resume.
  tandem::SettingsOf optimizer_options = tandem::SettingsOf::checkpoint;

  /// Parts of a global batch: in exact mode its logical shards, otherwise one a rank.
  int logical_ranks() const { return launch.exact ? launch.exact->logical_ranks : machine.world_size(); }

  /// Samples of all ranks' batches together.
  std::int64_t global_batch() const { return batch_size * (launch.data_loader.split_batches ? 1 : logical_ranks()); }

  CudaGraphs cuda_graphs = CudaGraphs::automatic;
  bool quiet = false;
  bool progress = true;
};

/// What to do after reading the command line.
struct ParseResult {
  std::optional<Options> options;  // empty: exit with this code
  int exit_code = 0;
};

/// The definition of the command line, from which completions and pages of the manual are made.
std::shared_ptr<CLI::App> describe_command_line();

/// Reads the command line. Prints help or one sentence about what is wrong. Throws tandem::ConfigError for what only
/// the library can tell.
ParseResult parse_options(int argc, char** argv);

}  // namespace train
