#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/call_record.h"
#include "comm/rank_group.h"

namespace tandem::comm {

/// A row of elements in memory.
struct ElementRow {
  void* data;             ///< of the first element
  std::int64_t elements;  ///< how many
  ElementType type;       ///< of each
};

/// One rank's reductions over memory that all ranks of the group can read and write. The lists of rows have the same
/// types and lengths on every rank; the group checks the calls' records only.
///
/// Up to RankGroup::kMailBytes every rank sends its rows to all, and each reduces all of them for itself: one wait,
/// and R reads. More than that is reduced in place: each rank reduces 1/R of the elements straight out of all ranks'
/// memory, and writes the result to all of them: two waits, but no copy, and together as many bytes read and written as
/// R copies of the rows. Both give the same bits. With several nodes the second goes along a NodeChain, and so do
/// reductions that were started: a ReductionThread takes those along, and no rank does a part of them.
class SharedReducer {
 public:
  /// `group` outlives it.
  SharedReducer(RankGroup& group, int rank) : group_(group), rank_(rank) {}

  /// Reduces the ranks' `inputs` into the `outputs` of all ranks, or of `root` alone unless it is -1. Outputs may be
  /// the inputs. Collective; throws like RankGroup::Call.
  void reduce(const CallRecord& record, std::span<const ElementRow> inputs, std::span<const ElementRow> outputs,
              ReduceOp op, int root = -1);

  /// What a rank lends to the others for a started reduction: lists as of `reduce`, which stay where they are.
  struct Lists {
    std::span<const ElementRow> inputs,  ///< the rows that this rank gives
        outputs;                         ///< where it gets the results
    ReduceOp op;                         ///< how they are combined
    /// Where the sums of squares of the outputs' blocks go (see reduce_with_squares), a pointer a row; empty: nowhere.
    std::span<double* const> squares = {};
  };

  /// Starts a reduction of more than a few elements, in place as above, and returns its number; `mine` and the memory
  /// that it tells of are lent until `wait` returns. Does not wait, but does this rank's part of started reductions
  /// that all other ranks have come to. Collective, but for itself: ranks start the same reductions in the same order,
  /// whatever else they call between them. Ranks may give the same outputs, or squares: they are written once. Throws
  /// like PostedCalls::post.
  std::uint64_t start(const CallRecord& record, const Lists& mine);

  /// Returns when the results of reduction `number`, and of those before, are there on all ranks.
  void wait(std::uint64_t number);

  /// Does this rank's part of what all have come to, and returns whether reduction `number`, and those before it, are
  /// done on all ranks.
  bool try_wait(std::uint64_t number);

 private:
  void do_parts();
  void reduce_mail(const CallRecord& record, std::span<const ElementRow> inputs, std::span<const ElementRow> outputs,
                   ReduceOp op, int root);
  void reduce_over_nodes(const CallRecord& record, std::span<const ElementRow> inputs,
                         std::span<const ElementRow> outputs, ReduceOp op, int root);
  template <class PeersParts>
  void reduce_share(const PeersParts& of, std::span<const ElementRow> parts, ReduceOp op, int root);

  RankGroup& group_;
  int rank_;
  std::vector<const void*> sources_;  // scratch: where the ranks' elements of a row are
  std::vector<void*> targets_;        // scratch: where its result goes
  std::vector<double*> squares_;      // scratch: and the squares of it
};

}  // namespace tandem::comm
