#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <typeinfo>
#include <utility>

#include "data/dispatch_channel.h"
#include "data/read_ahead.h"
#include "data/step_planner.h"
#include "data/stream_reader.h"

namespace tandem::data {

/// What all ranks of one prepared loader share.
struct SharedParts {
  EpochPlanOptions plan;                          ///< the length is 0 for an iterable
  int ranks = 1;                                  ///< of the launch, that share the plan's parts
  std::shared_ptr<StepPlanner> planner = {};      ///< null for an iterable
  std::int64_t global_batch_size = 0;             ///< samples of a full step of all ranks; 0: of different sizes
  std::shared_ptr<WorkerPool> pool = {};          ///< null: ranks read when they need a batch
  std::shared_ptr<StreamReader> stream = {};      ///< of an iterable that several ranks take parts of; otherwise null
  const std::type_info* sample_type = nullptr;    ///< what the stream gives
  std::shared_ptr<DispatchChannel> channel = {};  ///< where rank 0 reads for all; otherwise null
};

/// Closes the stream that ranks share when the last of rank 0's loaders goes: it is made of rank 0's dataset.
class StreamEnd {
 public:
  /// `stream` may be null.
  explicit StreamEnd(std::shared_ptr<StreamReader> stream) : stream_(std::move(stream)) {}
  ~StreamEnd() {
    if (stream_) stream_->close();
  }
  StreamEnd(const StreamEnd&) = delete;
  StreamEnd& operator=(const StreamEnd&) = delete;

 private:
  std::shared_ptr<StreamReader> stream_;
};

/// What one rank's loader is made of.
struct LoaderParts {
  std::shared_ptr<const SharedParts> shared;                 ///< by all ranks
  std::function<std::unique_ptr<StepSource>()> make_source;  ///< what reads, of this rank's own
  ReadAheadOptions ahead;                                    ///< how far it may
  std::shared_ptr<StreamEnd> end = {};                       ///< of rank 0's loaders
};

}  // namespace tandem::data
