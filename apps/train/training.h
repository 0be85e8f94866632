#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "inputs.h"
#include "metrics.h"
#include "options.h"
#include "tandem/tandem.h"
#include "unsaved.h"

namespace train {

/// How training ended, the same on all ranks.
struct Outcome {
  bool interrupted = false;
  std::int64_t steps = 0;                ///< optimizer updates made, those that fp16 skipped included
  std::int64_t epoch = 0;                ///< of the last one, from 0
  std::string saved_to;                  ///< the last checkpoint; empty: none
  FinalMetrics metrics{};                ///< filled in on rank 0
  std::string failed_save{};             ///< why the last checkpoint is not there; empty: it is, or none was due
  std::vector<std::string> written{};    ///< weights that are there, for people
  std::vector<std::string> unwritten{};  ///< why something else is not there, though training went on
  tandem::Profile profile{};
  bool failed_profile = false;
  std::string best{};        ///< of --save-best, for people; empty: none
  bool ended_early = false;  ///< by --early-stop
  std::string graphs{};      ///< what --cuda-graphs did, for people, if that is still to be told
};

/// Trains on this rank, and writes the log and the weights on rank 0, which tells `unsaved` how far it is, and calls
/// `on_ready` when all ranks have what they train: from there on a stop costs a step at most. Collective.
Outcome train_on_rank(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Unsaved& unsaved,
                      const std::function<void()>& on_ready = {});

}  // namespace train
