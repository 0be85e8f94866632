#include "comm/nodes/reduction_thread.h"

#include <cstring>

namespace tandem::comm {
namespace {

Frame frame_of(NodeLink& link, const std::string& text) {
  Frame frame = link.frame();
  frame.resize(text.size());
  if (!text.empty()) std::memcpy(frame.bytes().data(), text.data(), text.size());
  return frame;
}

std::string text_of(const Frame& frame) {
  return {reinterpret_cast<const char*>(frame.bytes().data()), frame.bytes().size()};
}

}  // namespace

ReductionThread::ReductionThread(NodeExchange& nodes, PostedCalls& calls, CancelToken& token)
    : nodes_(nodes), calls_(calls), token_(token), chain_(nodes.link(), nodes.ranks_of_nodes()), thread_([this] {
        run();
      }) {}

ReductionThread::~ReductionThread() { thread_.join(); }

void ReductionThread::run() {
  try {
    while (
        calls_.await_carried([this](auto number, auto& record, auto payloads) { reduce(number, record, payloads); })) {
    }
    say_farewell();
  } catch (...) {
    token_.cancel(std::current_exception(), nodes_.place().first_rank);
  }
}

void ReductionThread::reduce(std::uint64_t number, const CallRecord& record, std::span<const void* const> payloads) {
  std::vector<const SharedReducer::Lists*> lists;
  for (const void* payload : payloads) lists.push_back(static_cast<const SharedReducer::Lists*>(payload));
  chain_.reduce(lists, {to_bytes(record), [&](std::string_view bytes, int node) {
                          const CallRecord theirs = call_record_of(std::string(bytes), node, texts_);
                          if (theirs == record) return;
                          throw CollectiveError(different_reductions(number, record, nodes_.place().first_rank, theirs,
                                                                     nodes_.first_rank_of(node)));
                        }});
}

// After the last reduction of this node an empty message goes both ways, in place of the next reduction.
void ReductionThread::say_farewell() {
  const NodePlace& place = nodes_.place();
  NodeLink& link = nodes_.link();
  if (place.node + 1 < place.nodes) link.send(place.node + 1, Channel::partial, frame_of(link, ""));
  if (place.node > 0) link.send(place.node - 1, Channel::result, frame_of(link, ""));
  const auto expect_farewell = [&](int peer, Channel channel) {
    if (!text_of(link.receive(peer, channel)).empty())
      throw CollectiveError(departed_while_reducing(place.first_rank, nodes_.first_rank_of(peer)));
  };
  if (place.node > 0) expect_farewell(place.node - 1, Channel::partial);
  if (place.node + 1 < place.nodes) expect_farewell(place.node + 1, Channel::result);
}

}  // namespace tandem::comm
