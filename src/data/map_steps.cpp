#include "data/map_steps.h"

#include <utility>

#include "tandem/rng/generators.h"

namespace tandem::data {

MapSteps::MapSteps(std::shared_ptr<StepPlanner> planner, RankShards shards, std::uint64_t seed,
                   detail::AnyDataset dataset)
    : planner_(std::move(planner)), shards_(shards), seed_(seed), dataset_(std::move(dataset)) {}

void MapSteps::start(const EpochStart& start) {
  if (dataset_.set_epoch) {
    const rng::KeyedGenerator generator(seed_, start.epoch, kBeginning);
    dataset_.set_epoch(start.epoch);
  }
  steps_ = planner_->begin(start.number, start.epoch);
  epoch_ = start.epoch;
  step_ = start.first_step;
  sub_step_ = 0;
}

StepSource::Job MapSteps::next() {
  const int shards = shards_.present(step_, [this](int shard) { return steps_->steps(shard); });
  if (shards == 0) return {};
  // Jobs end before the source does; the steps may be another epoch's by then.
  Job job = [this, steps = steps_, epoch = epoch_, step = step_, sub_step = sub_step_] {
    return make(*steps, epoch, step, sub_step);
  };
  sub_step_ += 1;
  if (sub_step_ == shards) {
    sub_step_ = 0;
    step_ += 1;
  }
  return job;
}

Step MapSteps::make(const EpochSteps& steps, std::int64_t epoch, std::int64_t step, int sub_step) const {
  Step made{steps.info(step, shards_, sub_step), {}};
  const EpochPlanOptions& plan = planner_->options();
  ReadContext context{.seed = seed_, .epoch = epoch, .step = step, .rank = shards_.rank};
  if (plan.dispatch) made.rows = steps.samples(step, 0);
  if (!plan.dispatch) {
    made.batches.push_back(dataset_.read(steps.indices(step, shards_.shard(sub_step)), context));
  } else if (plan.split_batches && plan.ranks > 1) {
    read_for_all(made, steps, context);
  } else {
    for (context.rank = 0; context.rank < plan.ranks; ++context.rank)
      made.batches.push_back(dataset_.read(steps.indices(step, context.rank), context));
  }
  return made;
}

// One batch for all ranks, of which each gets a view.
void MapSteps::read_for_all(Step& made, const EpochSteps& steps, const ReadContext& context) const {
  std::vector<std::int64_t> indices;
  for (int rank = 0; rank < planner_->options().ranks; ++rank) {
    const auto part = steps.indices(context.step, rank);
    indices.insert(indices.end(), part.begin(), part.end());
  }
  detail::AnyBatch batch = dataset_.read(indices, context);
  const auto each = static_cast<std::int64_t>(indices.size()) / planner_->options().ranks;
  for (int rank = 0; rank < planner_->options().ranks; ++rank)
    made.batches.push_back(dataset_.slice(batch, rank * each, (rank + 1) * each));
}

}  // namespace tandem::data
