#pragma once

#include <memory>
#include <utility>

#include "tandem/data/loader_base.h"
#include "tandem/data/loader_parts.h"

namespace tandem::data {

/// Each rank reads its own batches of the plan from its own dataset object.
template <class Batch>
class DataLoaderShard final : public LoaderBase<Batch> {
 public:
  /// Of the parts that `prepare` made for this rank.
  DataLoaderShard(LoaderContext context, LoaderParts<Batch> parts)
      : LoaderBase<Batch>(std::move(context), parts.shared->planner, parts.shared->global_batch_size),
        parts_(std::move(parts)),
        ahead_(parts_.make_source(), parts_.shared->pool, parts_.ahead, this->context().group->token()) {}

  ~DataLoaderShard() override { this->leave(); }

  std::unique_ptr<LoaderBase<Batch>> skip_first_batches(std::int64_t steps) override {
    auto skipping = std::make_unique<DataLoaderShard>(this->context(), parts_);
    this->share_epochs_with(*skipping, steps);
    return skipping;
  }

 protected:
  void begin_epoch(const EpochStart& start) override { ahead_.start(start); }
  void end_epoch() override { ahead_.stop(); }

  std::optional<std::pair<StepInfo, Batch>> take() override {
    auto step = ahead_.take();
    if (!step) return std::nullopt;
    return std::pair(step->info, std::move(step->batches.front()));
  }

  bool ready() override { return !parts_.shared->pool || ahead_.ready(); }

  std::int64_t known_remainder() const override { return ahead_.remainder(); }
  bool reads() const override { return true; }

 private:
  LoaderParts<Batch> parts_;
  ReadAhead<Batch> ahead_;
};

}  // namespace tandem::data
