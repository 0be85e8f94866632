// Buffers of exact mode, which follow logical shard 0.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "nn/reducer_group.h"
#include "tandem/comm/communicator.h"

namespace tandem::nn {

/// Has the forward passes of all logical shards begin with the buffers that shard 0 had after its last backward pass of
/// the global micro-batch before; with weights that forward passes write to as well (see ModelReducer). What else has
/// become of them in a micro-batch is gone when the next one begins.
class ExactBuffers {
 public:
  /// Of all models of `models`, which outlives it as the communicator does.
  ExactBuffers(const ReducerGroup& models, comm::Communicator& communicator)
      : models_(models), communicator_(communicator) {}

  /// Shard `sub_step` of the rank, of `each`, computes from here on.
  void begin_micro_batch(int sub_step, int each);

  /// After a backward pass of it.
  void after_pass(int sub_step);

  /// Gets shard 0's from its rank, for `end_step`. Collective.
  void exchange();

  /// All shards of the rank have computed: the buffers become shard 0's, got by `exchange`.
  void end_step();

 private:
  std::vector<at::Tensor> tensors() const;

  const ReducerGroup& models_;
  comm::Communicator& communicator_;
  std::vector<at::Tensor> first_;  // with which each shard begins
  std::vector<at::Tensor> main_;   // what shard 0 has made of them
};

}  // namespace tandem::nn
