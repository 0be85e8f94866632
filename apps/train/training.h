#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "metrics.h"
#include "options.h"
#include "tandem/tandem.h"
#include "task.h"
#include "unsaved.h"

namespace tandem::io {
class CheckpointSeries;
class OutputFile;
}  // namespace tandem::io

namespace train {

/// How training ended, the same on all ranks.
struct Outcome {
  bool interrupted = false;
  std::int64_t steps = 0;              ///< optimizer updates made, those that fp16 skipped included
  std::int64_t epoch = 0;              ///< of the last one, from 0
  std::string resumed_from, saved_to;  ///< checkpoints; empty: none
  std::int64_t resumed_steps = 0;      ///< updates that were made before
  FinalMetrics metrics;                ///< filled in on rank 0
  std::string failed;                  ///< what could not be written, though training went on; empty: nothing
  tandem::Profile profile;
  std::int64_t replayed_steps = 0;  ///< with --cuda-graphs
  std::string not_replayed;         ///< why the last step was not, if it was not
};

/// What was read before the ranks start, once for all of them.
struct Inputs {
  std::unique_ptr<const Task> task;
  tandem::io::NamedTensors initial_weights;              ///< empty: the model's own
  std::optional<std::string> checkpoint;                 ///< to go on from; empty text: the newest one
  std::int64_t total_steps = 0;                          ///< optimizer updates of the whole training
  std::shared_ptr<tandem::io::CheckpointSeries> series;  ///< null without --checkpoint-dir
  std::shared_ptr<tandem::io::OutputFile> weights;       ///< where they will be saved; null without --save-weights
  std::unique_ptr<MetricsLog> log;                       ///< of rank 0
};

/// Reads what `options` name, and makes sure of the places for output: nobody else writes checkpoints there, and what
/// gets the weights in a stream is open. If that is the standard output, text goes to standard error from now on.
/// Throws tandem::ConfigError that names the flag.
Inputs read_inputs(const Options& options);

/// Trains on this rank, and writes the log and the weights on rank 0, which tells `unsaved` how far it is. Collective.
Outcome train_on_rank(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Unsaved& unsaved);

}  // namespace train
