// What becomes of the command line's flags when a training goes on from a checkpoint, which has those that it was made
// with.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tandem/io/tracker.h"
#include "training_state.h"

namespace CLI {
class App;
}  // namespace CLI

namespace train {

/// What counts when --resume goes on from a checkpoint.
enum class OnResume {
  used,       ///< the command line, as ever: how long, how fast, and what is written where
  inherited,  ///< the checkpoint, unless the flag is given: then that is used from there on, and a line says so
  kept,       ///< the checkpoint; another one is refused
};

/// By a flag's name, such as "lr"; nothing for what is none of train's.
std::optional<OnResume> on_resume(const std::string& flag);

/// What the checkpoint says of its training that `resume` names: a directory, or auto for the newest one in `directory`
/// that can be read. Nothing when there is none; an older one says no flags, classes and data.
std::optional<TrainingState> state_of_checkpoint(const std::string& resume, const std::string& directory);

/// The flags of a checkpoint that count because `app` was not given them, as "--lr=0.01". Throws tandem::ConfigError
/// when it was given another value of one that is kept.
std::vector<std::string> inherited_flags(const CLI::App& app, const tandem::io::Config& checkpoint);

/// How a training differs from the one that the checkpoint is of.
struct Differences {
  std::vector<std::string> lines;  ///< for people
  bool in_optimizer = false;       ///< so that its options are to be those of the command line
};

/// Compares flags as they act with those of the checkpoint. Throws tandem::ConfigError for what cannot go on.
Differences compare_flags(const tandem::io::Config& flags, const tandem::io::Config& checkpoint);

}  // namespace train
