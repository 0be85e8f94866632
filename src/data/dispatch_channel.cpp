#include "data/dispatch_channel.h"

#include <algorithm>
#include <utility>

#include "backend/intra_op_threads.h"
#include "comm/nodes/side_traffic.h"
#include "tandem/core/error.h"

namespace tandem::data {

static std::string to_bytes(const StepInfo& info) {
  return comm::pack(info.step, info.last, info.last_of_all, info.remainder, info.samples_to_keep, info.sub_step,
                    info.sub_steps);
}

static void from_bytes(std::string_view bytes, StepInfo& info) {
  comm::unpack(bytes, info.step, info.last, info.last_of_all, info.remainder, info.samples_to_keep, info.sub_step,
               info.sub_steps);
}

DispatchChannel::DispatchChannel(const comm::NodePlace& place, std::size_t depth, CancelToken& token)
    : place_(place), first_(std::max(place.first_rank, 1)) {
  for (int rank = first_; rank < place.first_rank + place.local_ranks; ++rank)
    rings_.push_back(std::make_unique<Ring>(depth, token));
  closed_.resize(rings_.size());
}

// Ranks whose loader was never made have not closed it.
DispatchChannel::~DispatchChannel() {
  if (traffic_ && place_.node > 0)
    for (std::size_t i = 0; i < rings_.size(); ++i)
      if (!closed_[i]) close(first_ + static_cast<int>(i));
}

void DispatchChannel::connect(comm::SideTraffic& traffic, std::uint64_t number, const detail::BatchBytes& bytes) {
  traffic_ = &traffic;
  number_ = number;
  bytes_ = bytes;
  if (place_.node == 0) return;
  for (std::size_t i = 0; i < rings_.size(); ++i) {
    const int rank = first_ + static_cast<int>(i);
    traffic.open({number, rank}, rings_[i]->capacity(),
                 {.take = [this, rank](std::string_view message) { receive(rank, message); },
                  .end = [ring = rings_[i].get()] { ring->close_producer(); }});
  }
}

bool DispatchChannel::has_room(std::size_t handovers) const {
  for (int rank = 1; rank < place_.world_size; ++rank) {
    const std::size_t room =
        is_here(rank) ? ring(rank).capacity() - ring(rank).size() : traffic_->room({number_, rank});
    if (room < handovers) return false;
  }
  return true;
}

void DispatchChannel::push(int rank, Handover handover) {
  if (is_here(rank))
    ring(rank).push(std::move(handover));
  else
    send(rank, std::move(handover));
}

void DispatchChannel::send(int rank, Handover handover) {
  if (handover.batch)
    handover.batch.for_each_tensor([&](const at::Tensor& tensor) {
      if (tensor.requires_grad())
        throw DataError("a batch for rank " + std::to_string(rank) +
                        " has a tensor that requires a gradient, which cannot be sent to another machine; detach it");
    });
  traffic_->push({number_, rank}, [add = bytes_.add,
                                   shared = std::make_shared<Handover>(std::move(handover))](std::string& bytes) {
    set_intra_op_threads(1);  // the ranks have the cores
    bytes += comm::pack(shared->epoch_number, shared->epoch, shared->info, static_cast<bool>(shared->batch));
    if (shared->batch) add(bytes, shared->batch);
  });
}

// There is room: rank 0 sends no more than fits.
void DispatchChannel::receive(int rank, std::string_view message) const {
  set_intra_op_threads(1);
  Handover handover{};
  bool has_batch = false;
  comm::unpack_some(message, handover.epoch_number, handover.epoch, handover.info, has_batch);
  if (has_batch) handover.batch = bytes_.take(message);
  if (ring(rank).size() == ring(rank).capacity())
    throw CollectiveError("node 0 has sent more batches to rank " + std::to_string(rank) + " than it has room for");
  ring(rank).push(std::move(handover));
}

void DispatchChannel::end() {
  for (int rank = 1; rank < place_.world_size; ++rank)
    if (is_here(rank))
      ring(rank).close_producer();
    else if (traffic_)
      traffic_->end({number_, rank});
}

std::optional<Handover> DispatchChannel::pop(int rank) {
  auto handover = ring(rank).pop();
  if (handover && traffic_ && place_.node > 0) traffic_->taken({number_, rank});
  return handover;
}

void DispatchChannel::close(int rank) {
  ring(rank).close_consumer();
  closed_[static_cast<std::size_t>(rank - first_)] = true;
  if (traffic_ && place_.node > 0) traffic_->close({number_, rank});
}

ChannelEnd::ChannelEnd(std::shared_ptr<DispatchChannel> channel, int rank)
    : channel_(std::move(channel)), rank_(rank) {}

ChannelEnd::~ChannelEnd() { rank_ > 0 ? channel_->close(rank_) : channel_->end(); }

}  // namespace tandem::data
