#include "data/read_ahead.h"

#include <string>
#include <utility>

#include "core/work_scope.h"
#include "tandem/core/error.h"

namespace tandem::data {

ReadAhead::ReadAhead(std::unique_ptr<StepSource> source, std::shared_ptr<WorkerPool> pool, ReadAheadOptions options,
                     const CancelToken& token)
    : source_(std::move(source)), pool_(std::move(pool)), options_(options), token_(token) {}

void ReadAhead::start(const EpochStart& start) {
  stop();
  source_->start(start);
  if (!pool_) return;
  queue_.emplace(pool_, options_.depth, options_.in_order, [source = source_.get()]() -> WorkerPool::Job {
    auto job = source->next();
    if (!job) return {};
    return [job = std::move(job)]() mutable -> WorkerPool::Result { return std::make_shared<Step>(job()); };
  });
}

std::optional<Step> ReadAhead::take() {
  if (!pool_) {
    const WorkScope scope(token_);
    auto job = source_->next();
    return job ? std::optional(job()) : std::nullopt;
  }
  auto step = take_from_queue();
  if (!step) return std::exchange(held_back_, std::nullopt);
  // Out of order the last step may come early. It keeps its place, since it may be shorter than the others.
  if (step->info.last && !held_back_ && !options_.in_order) {
    held_back_ = std::move(step);
    return take();
  }
  return step;
}

void ReadAhead::stop() {
  queue_.reset();
  held_back_.reset();
}

std::optional<Step> ReadAhead::take_from_queue() {
  const auto result = queue_->take(options_.timeout);
  if (!result)
    throw DataError("no batch was ready within the loader's timeout of " + std::to_string(options_.timeout->count()) +
                    " ms; use more workers or a longer timeout");
  if (!*result) return std::nullopt;
  return std::move(*std::static_pointer_cast<Step>(*result));
}

}  // namespace tandem::data
