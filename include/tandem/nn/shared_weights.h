#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/comm/communicator.h"

namespace tandem::nn {

/// Tensors by the module's names, in its order.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// The weights of one model: whether all CPU ranks have them in one memory, and whether somebody has written to them.
///
/// Ranks may share as long as nobody but a ShardedOptimizer writes to weights, which sees to it that one rank writes
/// while no rank reads. What others write is noticed by LibTorch's count of a tensor's versions.
class SharedWeights {
 public:
  /// Refers to `parameters`, like the others for as long as it is used.
  SharedWeights(const NamedTensors& parameters, comm::Communicator& communicator, comm::RankGroup& group);

  /// To be called after each write that is known of.
  void accept();

  /// Name of a parameter that was written to, or got other memory, since the last `accept`.
  std::optional<std::string> written() const;

  /// Whether all ranks' weights are the same bits. Collective; the answer is the same on all.
  bool equal_on_all_ranks() const;

  /// Whether ranks may share: weights lie dense in CPU memory, and nobody has forbidden it.
  bool shareable() const;

  /// Ranks may share no more, on this rank's word.
  void forbid() { forbidden_ = true; }

  bool shared() const { return shared_; }  ///< whether all ranks have one memory now

  /// Puts all ranks' weights in the memory of rank 0's, which have to be equal. Collective.
  void share();

  /// Gives every rank memory of its own for its weights, if they are shared. Collective.
  void unshare();

 private:
  struct Seen {
    const void* data;
    std::uint32_t version;
  };

  const NamedTensors& parameters_;
  comm::Communicator& communicator_;
  comm::RankGroup& group_;
  std::vector<Seen> seen_;
  bool forbidden_ = false;
  bool shared_ = false;
};

}  // namespace tandem::nn
