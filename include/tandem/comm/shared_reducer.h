#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tandem/comm/call_record.h"
#include "tandem/comm/rank_group.h"

namespace tandem::comm {

/// A row of elements in memory.
struct Part {
  void* data;
  std::int64_t elements;
  ElementType type;
};

/// One rank's reductions over memory that all ranks of the group can read and write. The lists of parts have the same
/// types and lengths on every rank; the group checks the calls' records only.
///
/// Up to RankGroup::kMailBytes every rank sends its parts to all, and each reduces all of them for itself: one wait,
/// and R reads. More than that is reduced in place: each rank reduces 1/R of the elements straight out of all ranks'
/// memory, and writes the result to all of them: two waits, but no copy, and together as many bytes read and written as
/// R copies of the parts. Both give the same bits.
class SharedReducer {
 public:
  /// `group` outlives it.
  SharedReducer(RankGroup& group, int rank) : group_(group), rank_(rank) {}

  /// Reduces the ranks' `inputs` into the `outputs` of all ranks, or of `root` alone unless it is -1. Outputs may be
  /// the inputs. Collective; throws like RankGroup::Call.
  void reduce(const CallRecord& record, std::span<const Part> inputs, std::span<const Part> outputs, ReduceOp op,
              int root = -1);

 private:
  void reduce_mail(const CallRecord& record, std::span<const Part> inputs, std::span<const Part> outputs, ReduceOp op,
                   int root);
  void reduce_share(const RankGroup::Call& call, std::span<const Part> parts, ReduceOp op, int root);

  RankGroup& group_;
  int rank_;
  std::vector<const void*> sources_;  // scratch: where the ranks' elements of a part are
  std::vector<void*> targets_;        // scratch: where its result goes
};

}  // namespace tandem::comm
