#include "comm/nodes/chain.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "comm/partial_reduction.h"

namespace tandem::comm {
namespace {

using Ranks = std::span<const SharedReducer::Lists* const>;

// What all ranks have together, for which one message to all costs less than one after the other through all nodes.
constexpr std::size_t kSmallBytes = 4096;

std::size_t aligned(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

std::size_t bytes_of(const ElementRow& row) { return static_cast<std::size_t>(row.elements) * size_of(row.type); }

}  // namespace

int first_rank_of(const std::vector<int>& ranks_of_nodes, int node) {
  return std::accumulate(ranks_of_nodes.begin(), ranks_of_nodes.begin() + node, 0);
}

NodeChain::NodeChain(NodeLink& link, std::vector<int> ranks_of_nodes, ChainChannels channels)
    : link_(link),
      ranks_of_nodes_(std::move(ranks_of_nodes)),
      channels_(channels),
      world_size_(first_rank_of(ranks_of_nodes_, link.nodes())) {}

void NodeChain::reduce(Ranks ranks) {
  const std::span<const ElementRow> rows = ranks[0]->inputs;
  std::size_t bytes = 0;
  for (const ElementRow& row : rows) bytes += aligned(bytes_of(row));
  if (bytes == 0) return;
  if (bytes * static_cast<std::size_t>(world_size_) <= kSmallBytes) return reduce_small(ranks, bytes);
  cut(rows);
  const int node = link_.node(), last = link_.nodes() - 1;
  std::size_t back = 0;  // pieces whose results are there
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    // As many under way as the link takes without waiting: so no two nodes wait for each other to receive.
    if (node != last && i - back == NodeLink::kWindow) take_back(ranks, pieces_[back++]);
    Frame frame = add_node(ranks, pieces_[i]);
    if (node != last) {
      link_.send(node + 1, channels_.partial, std::move(frame));
    } else {
      frame = finish_piece(ranks, pieces_[i], std::move(frame));
      if (node != 0) link_.send(node - 1, channels_.result, std::move(frame));
    }
  }
  if (node == last) return;
  while (back < pieces_.size()) take_back(ranks, pieces_[back++]);
}

void NodeChain::reduce_small(Ranks ranks, std::size_t bytes) {
  std::vector<std::byte> mine(bytes * ranks.size());
  std::byte* to = mine.data();
  for (const SharedReducer::Lists* lists : ranks)
    for (const ElementRow& row : lists->inputs) {
      if (row.elements > 0) std::memcpy(to, row.data, bytes_of(row));
      to += aligned(bytes_of(row));
    }
  const std::vector<Frame> frames = exchange(link_, channels_.partial, mine);
  inputs_.clear();
  for (int node = 0; node < link_.nodes(); ++node) {
    const auto theirs = frames[static_cast<std::size_t>(node)].bytes();
    const auto count = static_cast<std::size_t>(ranks_of_nodes_[static_cast<std::size_t>(node)]);
    if (theirs.size() != bytes * count)
      throw LinkError(node, "node " + std::to_string(node) + " sent " + std::to_string(theirs.size()) +
                                " bytes to a reduction, in place of " + std::to_string(bytes * count));
    for (std::size_t rank = 0; rank < count; ++rank) inputs_.push_back(theirs.data() + rank * bytes);
  }
  const auto rows = ranks[0]->inputs;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    collect_outputs(ranks, row);
    reduce_elements(rows[row].type, ranks[0]->op, inputs_, outputs_, 0, rows[row].elements);
    write_squares(ranks, row, 0, rows[row].elements);
    for (const void*& input : inputs_) input = static_cast<const std::byte*>(input) + aligned(bytes_of(rows[row]));
  }
}

// Rows one after another into frames. They are cut at whole blocks, of which the squares are.
void NodeChain::cut(std::span<const ElementRow> rows) {
  segments_.clear();
  pieces_.assign(1, {});
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const std::size_t size = size_of(rows[row].type), partial_size = partial_size_of(rows[row].type);
    for (std::int64_t begin = 0; begin < rows[row].elements;) {
      Piece& piece = pieces_.back();
      const std::int64_t left = rows[row].elements - begin;
      const auto fit = static_cast<std::int64_t>((Frame::kMostBytes - piece.partial_bytes) / partial_size);
      const std::int64_t count = left <= fit ? left : fit / kReductionBlock * kReductionBlock;
      if (count == 0) {
        pieces_.push_back({segments_.size(), segments_.size(), 0, 0});
        continue;
      }
      segments_.push_back({row, begin, begin + count, piece.partial_bytes, piece.bytes});
      piece.last = segments_.size();
      piece.partial_bytes = aligned(piece.partial_bytes + static_cast<std::size_t>(count) * partial_size);
      piece.bytes = aligned(piece.bytes + static_cast<std::size_t>(count) * size);
      begin += count;
    }
  }
}

void NodeChain::collect_inputs(Ranks ranks, std::size_t row) {
  inputs_.clear();
  for (const SharedReducer::Lists* lists : ranks) inputs_.push_back(lists->inputs[row].data);
}

// Ranks that have one memory for results give the same pointer.
void NodeChain::collect_outputs(Ranks ranks, std::size_t row) {
  outputs_.clear();
  for (const SharedReducer::Lists* lists : ranks) {
    void* const output = lists->outputs[row].data;
    if (std::find(outputs_.begin(), outputs_.end(), output) == outputs_.end()) outputs_.push_back(output);
  }
}

// The partial results after this node's ranks.
Frame NodeChain::add_node(Ranks ranks, const Piece& piece) {
  const bool first = link_.node() == 0;
  Frame frame = first ? link_.frame() : receive(link_.node() - 1, channels_.partial, piece.partial_bytes);
  frame.resize(piece.partial_bytes);
  for (std::size_t i = piece.first; i < piece.last; ++i) {
    const Segment& segment = segments_[i];
    std::byte* const partial = frame.bytes().data() + segment.partial_offset;
    collect_inputs(ranks, segment.row);
    accumulate(ranks[0]->inputs[segment.row].type, ranks[0]->op, first ? nullptr : partial, inputs_, segment.begin,
               segment.end, partial);
  }
  return frame;
}

// Writes the results to the outputs, and into the frame that tells the other nodes.
Frame NodeChain::finish_piece(Ranks ranks, const Piece& piece, Frame partial) {
  Frame results = link_.frame();
  results.resize(piece.bytes);
  for (std::size_t i = piece.first; i < piece.last; ++i) {
    const Segment& segment = segments_[i];
    const ElementType type = ranks[0]->inputs[segment.row].type;
    collect_outputs(ranks, segment.row);
    finish_partial(type, ranks[0]->op, partial.bytes().data() + segment.partial_offset, world_size_, outputs_,
                   segment.begin, segment.end);
    const std::size_t size = size_of(type);
    std::memcpy(results.bytes().data() + segment.offset,
                static_cast<const std::byte*>(outputs_[0]) + static_cast<std::size_t>(segment.begin) * size,
                static_cast<std::size_t>(segment.end - segment.begin) * size);
    write_squares(ranks, segment.row, segment.begin, segment.end);
  }
  return results;
}

void NodeChain::take_back(Ranks ranks, const Piece& piece) {
  Frame results = receive(link_.node() + 1, channels_.result, piece.bytes);
  for (std::size_t i = piece.first; i < piece.last; ++i) {
    const Segment& segment = segments_[i];
    const std::size_t size = size_of(ranks[0]->inputs[segment.row].type);
    collect_outputs(ranks, segment.row);
    for (void* output : outputs_)
      std::memcpy(static_cast<std::byte*>(output) + static_cast<std::size_t>(segment.begin) * size,
                  results.bytes().data() + segment.offset,
                  static_cast<std::size_t>(segment.end - segment.begin) * size);
    write_squares(ranks, segment.row, segment.begin, segment.end);
  }
  if (link_.node() != 0) link_.send(link_.node() - 1, channels_.result, std::move(results));
}

// Of the results that are in the first rank's output.
void NodeChain::write_squares(Ranks ranks, std::size_t row, std::int64_t begin, std::int64_t end) {
  if (ranks[0]->squares.empty()) return;
  const ElementRow& output = ranks[0]->outputs[row];
  for (std::int64_t at = begin; at < end; at += kReductionBlock) {
    const std::byte* const block =
        static_cast<const std::byte*>(output.data) + static_cast<std::size_t>(at) * size_of(output.type);
    const double sum = sum_of_squares(output.type, block, std::min(kReductionBlock, end - at));
    for (const SharedReducer::Lists* lists : ranks) lists->squares[row][at / kReductionBlock] = sum;
  }
}

Frame NodeChain::receive(int peer, Channel channel, std::size_t bytes) {
  Frame frame = link_.receive(peer, channel);
  if (frame.bytes().empty()) {  // a farewell: see ReductionThread
    throw CollectiveError(
        departed_while_reducing(first_rank_of(ranks_of_nodes_, peer), first_rank_of(ranks_of_nodes_, link_.node())));
  }
  if (frame.bytes().size() != bytes)
    throw LinkError(peer, "node " + std::to_string(peer) + " sent " + std::to_string(frame.bytes().size()) +
                              " bytes to a reduction, in place of " + std::to_string(bytes));
  return frame;
}

}  // namespace tandem::comm
