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

// A label in a message: its length, then itself; none where it is empty.
std::size_t label_bytes(std::string_view label) {
  return label.empty() ? 0 : aligned(sizeof(std::uint64_t) + label.size());
}

void write_label(std::span<std::byte> message, std::string_view label) {
  if (label.empty()) return;
  const std::uint64_t length = label.size();
  std::memcpy(message.data(), &length, sizeof length);
  std::memcpy(message.data() + sizeof length, label.data(), label.size());
}

std::string_view label_in(std::span<const std::byte> message, int node) {
  std::uint64_t length = 0;
  if (message.size() >= sizeof length) std::memcpy(&length, message.data(), sizeof length);
  if (length == 0 || length > message.size() - sizeof length)
    throw LinkError(node, "node " + std::to_string(node) + " sent a reduction without saying which");
  return {reinterpret_cast<const char*>(message.data()) + sizeof length, static_cast<std::size_t>(length)};
}

}  // namespace

int first_rank_of(const std::vector<int>& ranks_of_nodes, int node) {
  return std::accumulate(ranks_of_nodes.begin(), ranks_of_nodes.begin() + node, 0);
}

NodeChain::NodeChain(NodeLink& link, std::vector<int> ranks_of_nodes, ChainChannels channels)
    : link_(link),
      ranks_of_nodes_(std::move(ranks_of_nodes)),
      channels_(channels),
      world_size_(first_rank_of(ranks_of_nodes_, link.nodes())) {}

void NodeChain::reduce(Ranks ranks, const ChainLabel& label) {
  const std::span<const ElementRow> rows = ranks[0]->inputs;
  std::size_t bytes = 0;
  for (const ElementRow& row : rows) bytes += aligned(bytes_of(row));
  if (bytes == 0 && label.mine.empty()) return;
  if (bytes * static_cast<std::size_t>(world_size_) <= kSmallBytes) return reduce_small(ranks, bytes, label);
  cut(rows, label_bytes(label.mine));
  const int node = link_.node(), last = link_.nodes() - 1;
  std::size_t back = 0;  // pieces whose results are there
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    // As many under way as the link takes without waiting: so no two nodes wait for each other to receive.
    if (node != last && i - back == NodeLink::kWindow) take_back(ranks, pieces_[back++]);
    Frame frame = add_node(ranks, pieces_[i],
                           i == 0      ? first_partial(pieces_[0], label)
                           : node == 0 ? link_.frame()
                                       : receive(node - 1, channels_.partial, pieces_[i].partial_bytes));
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

// The frame of the first piece, with the label at its beginning.
Frame NodeChain::first_partial(const Piece& piece, const ChainLabel& label) {
  if (link_.node() == 0) {
    Frame frame = link_.frame();
    frame.resize(piece.partial_bytes);
    write_label(frame.bytes(), label.mine);
    return frame;
  }
  const int peer = link_.node() - 1;
  Frame frame = receive(peer, channels_.partial);
  if (!label.mine.empty()) label.compare(label_in(frame.bytes(), peer), peer);
  check_bytes(frame.bytes().size(), piece.partial_bytes, peer);
  return frame;
}

void NodeChain::reduce_small(Ranks ranks, std::size_t bytes, const ChainLabel& label) {
  const std::size_t head = label_bytes(label.mine);
  std::vector<std::byte> mine(head + bytes * ranks.size());
  write_label(mine, label.mine);
  std::byte* to = mine.data() + head;
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
    check_no_farewell(theirs.size(), node);
    if (!label.mine.empty()) label.compare(label_in(theirs, node), node);
    check_bytes(theirs.size(), head + bytes * count, node);
    for (std::size_t rank = 0; rank < count; ++rank) inputs_.push_back(theirs.data() + head + rank * bytes);
  }
  const auto rows = ranks[0]->inputs;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    collect_outputs(ranks, row);
    reduce_elements(rows[row].type, ranks[0]->op, inputs_, outputs_, 0, rows[row].elements);
    write_squares(ranks, row, 0, rows[row].elements);
    for (const void*& input : inputs_) input = static_cast<const std::byte*>(input) + aligned(bytes_of(rows[row]));
  }
}

// Rows one after another into frames, the first of which begins with a label. They are cut at whole blocks, of which
// the squares are.
void NodeChain::cut(std::span<const ElementRow> rows, std::size_t label_bytes) {
  segments_.clear();
  pieces_.assign(1, {0, 0, label_bytes, 0});
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

// Into a frame of the partial results before this node, those after its ranks.
Frame NodeChain::add_node(Ranks ranks, const Piece& piece, Frame frame) {
  const bool first = link_.node() == 0;
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

void NodeChain::check_bytes(std::size_t sent, std::size_t expected, int node) const {
  if (sent != expected)
    throw LinkError(node, "node " + std::to_string(node) + " sent " + std::to_string(sent) +
                              " bytes to a reduction, in place of " + std::to_string(expected));
}

// See ReductionThread.
void NodeChain::check_no_farewell(std::size_t sent, int node) const {
  if (sent == 0)
    throw CollectiveError(
        departed_while_reducing(first_rank_of(ranks_of_nodes_, node), first_rank_of(ranks_of_nodes_, link_.node())));
}

Frame NodeChain::receive(int peer, Channel channel) {
  Frame frame = link_.receive(peer, channel);
  check_no_farewell(frame.bytes().size(), peer);
  return frame;
}

Frame NodeChain::receive(int peer, Channel channel, std::size_t bytes) {
  Frame frame = receive(peer, channel);
  check_bytes(frame.bytes().size(), bytes, peer);
  return frame;
}

}  // namespace tandem::comm
