// What the files of ShardedOptimizer share: sharded_optimizer.cpp (who updates what, and the update),
// step_differences.cpp (what ranks compare before it) and sharded_state.cpp (whose state is where).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/rank_group.h"
#include "nn/lent_storage.h"
#include "nn/reducer_group.h"
#include "optim/optimizer_fields.h"
#include "optim/sharded_optimizer.h"

namespace tandem::optim {

inline comm::CallRecord step_record() { return {.operation = "optimizer_step"}; }

/// Calls `visit` for the state's defined tensors.
template <class Visit>
void visit_defined(torch::optim::OptimizerParamState& state, const Visit& visit) {
  visit_tensors(state, [&](at::Tensor& tensor) {
    if (tensor.defined()) visit(tensor);
  });
}

/// Of the options, and of which parameters have a gradient: the same on ranks that are about to make the same step.
std::uint64_t hash_of_step(torch::optim::Optimizer& optimizer);

struct ShardedOptimizer::UpdatePart {
  at::Tensor parameter;
  nn::ModelReducer* model = nullptr;
  int owner = kNobodyYet;
  // The state's defined tensors, on CPU ranks while the parameter has an owner.
  std::vector<std::unique_ptr<nn::LentStorage>> state{};

  void* key() const { return parameter.unsafeGetTensorImpl(); }
};

}  // namespace tandem::optim
