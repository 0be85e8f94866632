#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "metrics.h"
#include "options.h"
#include "tandem/tandem.h"
#include "task.h"
#include "weights.h"

namespace tandem::io {
class CheckpointSeries;
class OutputFile;
}  // namespace tandem::io

namespace train {

/// What was read before the ranks start, once for all of them.
struct Inputs {
  std::unique_ptr<const Task> task;
  std::string classes;  ///< of it, by describe_classes
  std::string data;     ///< what Task::data says of it
  InitialWeights initial_weights;
  std::string weights_table;              ///< for people, what of them is taken
  std::vector<std::string> warnings;      ///< for people, what of weights and data may not be as it was meant
  std::string batch_size;                 ///< for people, what --batch-size auto has found; empty: nothing
  std::string repeated;                   ///< for people, that samples are; empty: they are not
  std::string earlier;                    ///< for people, that another training's checkpoints are there; empty: none
  std::optional<std::string> checkpoint;  ///< to go on from; empty text: the newest one
  std::int64_t total_steps = 0;           ///< optimizer updates of the whole training
  std::int64_t warmup_steps = 0;          ///< those in which the learning rate grows
  std::shared_ptr<tandem::io::CheckpointSeries> series;  ///< null without --checkpoint-dir
  std::shared_ptr<tandem::io::OutputFile> weights;       ///< where they will be saved; null without --save-weights
  std::unique_ptr<MetricsLog> log;                       ///< of rank 0
};

/// Reads what `options` name, finds the batch size where they ask for that and puts it into them, and makes sure of the
/// places for output: nobody else writes checkpoints there, and what gets the weights in a stream is open. If that is
/// the standard output, text goes to standard error from now on. Throws tandem::ConfigError that names the flag.
Inputs read_inputs(Options& options);

/// The network that training begins with, with --init-weights and --freeze.
std::shared_ptr<Net> make_initial_net(const Options& options, const Inputs& inputs);

/// The average of its weights that --ema asks for; null: none.
std::unique_ptr<tandem::optim::ExponentialMovingAverage> make_average(const Options& options, const Net& net);

}  // namespace train
