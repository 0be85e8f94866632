// One of the two kinds of prepared loaders, which make_loader (prepare_loader.cpp) chooses from: each rank reads, which
// is the default of map-style datasets. The other is data_loader_dispatcher.h. What reads is in map_steps.cpp; a
// batch's whole way is at the top of loader_base.h.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "data/loader_base.h"
#include "data/loader_parts.h"

namespace tandem::data {

/// Each rank reads its own batches of the plan, from its own dataset object; of an iterable all ranks share one reader.
class DataLoaderShard final : public LoaderBase {
 public:
  /// Of the parts that `prepare` made for this rank.
  DataLoaderShard(LoaderContext context, LoaderParts parts);
  ~DataLoaderShard() override { leave(); }

  std::shared_ptr<LoaderBase> skip_first_batches(std::int64_t steps) override;

 protected:
  void begin_epoch(const EpochStart& start) override { ahead_.start(start); }
  void end_epoch() override { ahead_.stop(); }
  std::optional<RankStep> take() override;
  bool ready() override { return !parts_.shared->pool || ahead_.ready(); }
  std::int64_t known_remainder() const override { return ahead_.remainder(); }
  bool reads() const override { return true; }

 private:
  LoaderParts parts_;
  ReadAhead ahead_;
};

}  // namespace tandem::data
