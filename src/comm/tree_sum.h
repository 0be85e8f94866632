// Sums over ranks in the order of a binary tree: exact mode.
#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/rank_group.h"
#include "tandem/comm/communicator.h"

namespace tandem::comm {

/// Whether nobody else refers to the tensor or its memory.
bool is_alone(const at::Tensor& tensor);

/// The sum of two nodes of the tree, of which either may be undefined: then it is the other one. Sparse tensors are
/// coalesced. Within `left` where `overwrites_left`, which may lie in memory of its own only.
at::Tensor sum_of_nodes(const at::Tensor& left, const at::Tensor& right, bool overwrites_left);

/// The first node of a tree over `leaves`, a power of two of them, of which any may be undefined: leaf i and
/// i + size / 2 are added up, then i and i + size / 4, and so on. `leaves` stay as they are.
at::Tensor tree_sum(std::vector<at::Tensor> leaves);

/// Memory that all ranks have in common, for a sum that is written to it once.
struct CommonSum {
  at::Tensor memory;   ///< in memory as the one of `like` lies there; undefined: each rank has a sum of its own
  at::Tensor squares;  ///< gets the sums of squares of its blocks, as of reduce_with_squares; undefined: nobody asks
};

/// Gives that of each tensor of which some rank has a `dense` one. Called on all ranks alike, if it is, by those that
/// share memory, when all have come and before anybody writes.
using CommonSums = std::function<std::vector<CommonSum>(const std::vector<bool>& dense)>;

/// Each tensor's tree over the ranks, a power of two of them, times `factor`, as tensors that are the same bits on all
/// ranks, and those of `common` where it has any; undefined where no rank has one. A rank may lack any of `tensors`;
/// each has the sizes and type of its one of `like`. One that nobody else refers to may become the sum in place, the
/// others stay as they are. Where a rank has one that is not sparse, all count as dense. Additions are LibTorch's, so
/// that what a rank adds up by the functions above has the bits of what more ranks would give here. Collective.
std::vector<at::Tensor> tree_sum_over_ranks(Communicator& communicator, RankGroup& group,
                                            std::vector<at::Tensor> tensors, const std::vector<at::Tensor>& like,
                                            double factor, const CommonSums& common = {});

}  // namespace tandem::comm
