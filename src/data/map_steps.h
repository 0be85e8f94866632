#pragma once

#include <cstdint>
#include <memory>

#include "data/rank_shards.h"
#include "data/step_planner.h"
#include "data/step_source.h"
#include "tandem/data/detail/any_dataset.h"

namespace tandem::data {

/// Steps over a map-style dataset.
class MapSteps final : public StepSource {
 public:
  /// Reads the parts of `shards`, or where the planner's plan dispatches all parts of a step at once.
  MapSteps(std::shared_ptr<StepPlanner> planner, RankShards shards, std::uint64_t seed, detail::AnyDataset dataset);

  void start(const EpochStart& start) override;
  Job next() override;
  std::int64_t remainder() const override { return steps_->remainder(); }

 private:
  Step make(const EpochSteps& steps, std::int64_t epoch, std::int64_t step, int sub_step) const;
  void read_for_all(Step& made, const EpochSteps& steps, const ReadContext& context) const;

  const std::shared_ptr<StepPlanner> planner_;
  const RankShards shards_;
  const std::uint64_t seed_;
  const detail::AnyDataset dataset_;
  std::shared_ptr<const EpochSteps> steps_;
  std::int64_t epoch_ = 0, step_ = 0;
  int sub_step_ = 0;
};

}  // namespace tandem::data
