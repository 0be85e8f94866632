#include "comm/shared_reducer.h"

#include <algorithm>
#include <cstring>

#include "comm/nodes/chain.h"
#include "comm/shares.h"

namespace tandem::comm {
namespace {

// What the ranks see of each other in a call.
struct Parts {
  std::span<const ElementRow> inputs, outputs;
};

std::size_t bytes_of(const ElementRow& part) { return static_cast<std::size_t>(part.elements) * size_of(part.type); }

// In the mail parts begin at multiples of the largest element's size.
std::size_t mail_bytes(const ElementRow& part) { return (bytes_of(part) + 15) / 16 * 16; }

std::size_t mail_bytes(std::span<const ElementRow> parts) {
  std::size_t bytes = 0;
  for (const ElementRow& part : parts) bytes += mail_bytes(part);
  return bytes;
}

// Ranks that have one memory for results give the same pointer.
template <class Pointer>
void add_once(std::vector<Pointer>& pointers, Pointer pointer) {
  if (std::find(pointers.begin(), pointers.end(), pointer) == pointers.end()) pointers.push_back(pointer);
}

}  // namespace

void SharedReducer::reduce(const CallRecord& record, std::span<const ElementRow> inputs,
                           std::span<const ElementRow> outputs, ReduceOp op, int root) {
  if (mail_bytes(inputs) <= RankGroup::kMailBytes) return reduce_mail(record, inputs, outputs, op, root);
  if (group_.world_size() == 1 && inputs.data() == outputs.data()) return;
  if (group_.place().nodes > 1) return reduce_over_nodes(record, inputs, outputs, op, root);
  const Parts mine{inputs, outputs};
  const RankGroup::Call call(group_, rank_, record, &mine);
  reduce_share([&](int peer) -> const Parts& { return call.payload<Parts>(peer); }, inputs, op, root);
}

// One rank of each node takes the rows of all of its ranks along the chain, which writes results everywhere: those that
// are not wanted go to memory of their own.
void SharedReducer::reduce_over_nodes(const CallRecord& record, std::span<const ElementRow> inputs,
                                      std::span<const ElementRow> outputs, ReduceOp op, int root) {
  std::vector<ElementRow> unwanted;
  std::vector<std::vector<std::byte>> memory;
  if (root >= 0 && root != rank_) {
    for (const ElementRow& row : inputs) {
      memory.emplace_back(bytes_of(row));
      unwanted.push_back({memory.back().data(), row.elements, row.type});
    }
    outputs = unwanted;
  }
  const Lists mine{inputs, outputs, op};
  group_.carry(rank_, record, &mine, [&](const RankGroup::Call& call, NodeExchange& nodes) {
    std::vector<const Lists*> lists;
    for (int i = 0; i < nodes.place().local_ranks; ++i)
      lists.push_back(&call.payload<Lists>(nodes.place().first_rank + i));
    nodes.chain().reduce(lists);
  });
}

std::uint64_t SharedReducer::start(const CallRecord& record, const Lists& mine) {
  const std::uint64_t number = group_.posted().post(rank_, record, &mine);
  do_parts();
  return number;
}

bool SharedReducer::try_wait(std::uint64_t number) {
  do_parts();
  return group_.posted().done(number);
}

void SharedReducer::wait(std::uint64_t number) {
  if (try_wait(number)) return;
  const RankGroup::WaitScope waiting(group_, rank_, "for the others' gradients");
  do group_.posted().wait(rank_, number);
  while (!try_wait(number));
}

void SharedReducer::do_parts() {
  for (;;) {
    const PostedCalls::Part part(group_.posted(), rank_);
    if (!part) return;
    const auto& mine = part.payload<Lists>(rank_);
    reduce_share([&](int peer) -> const Lists& { return part.payload<Lists>(peer); }, mine.inputs, mine.op, -1);
  }
}

void SharedReducer::reduce_mail(const CallRecord& record, std::span<const ElementRow> inputs,
                                std::span<const ElementRow> outputs, ReduceOp op, int root) {
  std::byte* to = group_.outbox(rank_);
  for (const ElementRow& part : inputs) {
    if (part.elements > 0) std::memcpy(to, part.data, bytes_of(part));
    to += mail_bytes(part);
  }
  group_.exchange_mail(rank_, record, mail_bytes(inputs));
  if (root >= 0 && root != rank_) return;
  sources_.clear();
  for (int peer = 0; peer < group_.world_size(); ++peer) sources_.push_back(group_.mail(rank_, peer));
  for (const ElementRow& part : outputs) {
    void* const target[] = {part.data};
    reduce_elements(part.type, op, sources_, target, 0, part.elements);
    for (const void*& source : sources_) source = static_cast<const std::byte*>(source) + mail_bytes(part);
  }
}

// `of` tells the lists of a rank.
template <class PeersParts>
void SharedReducer::reduce_share(const PeersParts& of, std::span<const ElementRow> parts, ReduceOp op, int root) {
  const int ranks = group_.world_size();
  for_each_share(parts, rank_, ranks, [&](std::size_t i, std::int64_t begin, std::int64_t end) {
    sources_.clear();
    targets_.clear();
    squares_.clear();
    for (int peer = 0; peer < ranks; ++peer) {
      const auto& theirs = of(peer);
      sources_.push_back(theirs.inputs[i].data);
      if (root < 0 || root == peer) add_once(targets_, theirs.outputs[i].data);
      if constexpr (requires { theirs.squares; })
        if (!theirs.squares.empty()) add_once(squares_, theirs.squares[i]);
    }
    if (squares_.empty())
      reduce_elements(parts[i].type, op, sources_, targets_, begin, end);
    else
      reduce_with_squares(parts[i].type, op, sources_, targets_, squares_, begin, end);
  });
}

}  // namespace tandem::comm
