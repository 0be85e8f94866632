#include "data/dispatch_channel.h"

#include <utility>

namespace tandem::data {

DispatchChannel::DispatchChannel(int ranks, std::size_t depth, CancelToken& token) {
  for (int rank = 1; rank < ranks; ++rank) rings.push_back(std::make_unique<Ring>(depth, token));
}

ChannelEnd::ChannelEnd(std::shared_ptr<DispatchChannel> channel, int rank)
    : channel_(std::move(channel)), rank_(rank) {}

ChannelEnd::~ChannelEnd() {
  if (rank_ > 0)
    channel_->ring(rank_).close_consumer();
  else
    for (auto& ring : channel_->rings) ring->close_producer();
}

}  // namespace tandem::data
