#include "data/data_loader_shard.h"

#include <utility>

namespace tandem::data {

DataLoaderShard::DataLoaderShard(LoaderContext context, LoaderParts parts)
    : LoaderBase(std::move(context), parts.shared->planner, parts.shared->global_batch_size),
      parts_(std::move(parts)),
      ahead_(parts_.make_source(), parts_.shared->pool, parts_.ahead, this->context().group->token()) {}

std::shared_ptr<LoaderBase> DataLoaderShard::skip_first_batches(std::int64_t steps) {
  auto skipping = std::make_shared<DataLoaderShard>(context(), parts_);
  share_epochs_with(*skipping, steps);
  return skipping;
}

std::optional<RankStep> DataLoaderShard::take() {
  auto step = ahead_.take();
  if (!step) return std::nullopt;
  return RankStep{step->info, std::move(step->batches.front())};
}

}  // namespace tandem::data
