// One of the two kinds of prepared loaders, which make_loader (prepare_loader.cpp) chooses from: rank 0
// reads for all, which is the default of iterable datasets. The other is data_loader_shard.h, and a batch's whole way
// is at the top of loader_base.h.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <optional>

#include "data/loader_base.h"
#include "data/loader_parts.h"

namespace tandem::data {

/// Rank 0 reads all ranks' batches and hands them over through lock-free rings; the others never touch their dataset.
/// What is handed over is the tensors themselves: nothing is copied.
class DataLoaderDispatcher final : public LoaderBase {
 public:
  /// `end` is this rank's of the channel that all ranks share.
  DataLoaderDispatcher(LoaderContext context, LoaderParts parts, std::shared_ptr<ChannelEnd> end);
  ~DataLoaderDispatcher() override { leave(); }

  std::shared_ptr<LoaderBase> skip_first_batches(std::int64_t steps) override;

 protected:
  void begin_epoch(const EpochStart& start) override;
  void end_epoch() override;
  std::optional<RankStep> take() override { return feeder_ ? feed_and_take() : receive(); }
  bool ready() override;
  std::int64_t known_remainder() const override { return feeder_ ? feeder_->remainder() : remainder_; }
  bool reads() const override { return feeder_.has_value(); }

 private:
  std::optional<RankStep> feed_and_take();
  bool everybody_has_room() const;
  void hand_out(std::optional<Step> step);
  void hand_out(Step& step, int sub_step);
  std::optional<RankStep> receive();

  LoaderParts parts_;
  std::shared_ptr<ChannelEnd> end_;
  std::optional<ReadAhead> feeder_;  // on rank 0
  std::deque<RankStep> own_;         // rank 0's steps that were handed out to the others already
  std::exception_ptr failure_;       // rank 0: of a step that comes after those
  bool read_all_ = false;            // rank 0: the last step was handed out
  bool ended_ = false;               // other ranks: it has come
  std::int64_t epoch_ = 0;           // that runs
  std::int64_t remainder_ = -1;      // other ranks: as far as rank 0 has said
};

}  // namespace tandem::data
