// Reductions over the ranks of all nodes, in their order.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/nodes/link.h"
#include "comm/shared_reducer.h"

namespace tandem::comm {

/// The first rank of `node`, or where the last node's end: ranks have numbers in the order of their nodes.
int first_rank_of(const std::vector<int>& ranks_of_nodes, int node);

/// The way to the last node, and back.
struct ChainChannels {
  Channel partial = Channel::partial, result = Channel::result;
};

/// What nodes say of a reduction as they make it.
struct ChainLabel {
  std::string mine{};                                                ///< what this node says
  std::function<void(std::string_view theirs, int node)> compare{};  ///< gets another node's; throws to end it
};

/// Reduces what the ranks of all nodes have, to the very bits that one process with all these ranks gets.
///
/// Partial results go from node 0 to the last one, each of which goes on with its ranks in order; results come back the
/// same way, in pieces that are under way at the same time. So each node sends and receives twice what it reduces. What
/// is smaller than a few KiB all nodes send to all others, and each reduces it for itself.
class NodeChain {
 public:
  /// Over the nodes of `link`, which outlives it, with `ranks_of_nodes` ranks each. Nobody else uses `channels` while
  /// it reduces.
  NodeChain(NodeLink& link, std::vector<int> ranks_of_nodes, ChainChannels channels = {});

  /// Of all nodes.
  int world_size() const { return world_size_; }

  /// Reduces the ranks' inputs into the outputs, and squares, of all of them: `ranks` are what this node's ranks lend,
  /// which have the same types and lengths as those of all others. With a label, which goes ahead in the first message,
  /// each node compares an earlier one's with its own before it adds anything. Collective over nodes. Throws what the
  /// link and the label throw, CollectiveError when a node has said farewell instead, and LinkError for a message that
  /// is not of this reduction.
  void reduce(std::span<const SharedReducer::Lists* const> ranks, const ChainLabel& label = {});

 private:
  // A part of a row that lies within one piece.
  struct Segment {
    std::size_t row;
    std::int64_t begin, end;             // its elements
    std::size_t partial_offset, offset;  // of its bytes in a frame of partial results, and of results
  };
  // What goes into one frame.
  struct Piece {
    std::size_t first, last;           // its segments
    std::size_t partial_bytes, bytes;  // of its frames
  };

  void reduce_small(std::span<const SharedReducer::Lists* const> ranks, std::size_t bytes, const ChainLabel& label);
  void cut(std::span<const ElementRow> rows, std::size_t label_bytes);
  void collect_inputs(std::span<const SharedReducer::Lists* const> ranks, std::size_t row);
  void collect_outputs(std::span<const SharedReducer::Lists* const> ranks, std::size_t row);
  Frame first_partial(const Piece& piece, const ChainLabel& label);
  Frame add_node(std::span<const SharedReducer::Lists* const> ranks, const Piece& piece, Frame frame);
  Frame finish_piece(std::span<const SharedReducer::Lists* const> ranks, const Piece& piece, Frame partial);
  void take_back(std::span<const SharedReducer::Lists* const> ranks, const Piece& piece);
  void write_squares(std::span<const SharedReducer::Lists* const> ranks, std::size_t row, std::int64_t begin,
                     std::int64_t end);
  void check_no_farewell(std::size_t sent, int node) const;
  void check_bytes(std::size_t sent, std::size_t expected, int node) const;
  Frame receive(int peer, Channel channel);
  Frame receive(int peer, Channel channel, std::size_t bytes);

  NodeLink& link_;
  const std::vector<int> ranks_of_nodes_;
  const ChainChannels channels_;
  int world_size_ = 0;
  std::vector<Segment> segments_;  // of the current call, as all below
  std::vector<Piece> pieces_;
  std::vector<const void*> inputs_;  // of the ranks, of one row
  std::vector<void*> outputs_;
};

}  // namespace tandem::comm
