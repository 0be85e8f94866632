#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/comm/communicator.h"
#include "tandem/nn/named_tensors.h"

namespace tandem::comm {
class RankGroup;
}

namespace tandem::nn {

class LentStorage;

/// How the weights of CPU ranks lie in memory.
enum class Lending : std::uint8_t {
  none,    ///< as the program has made them
  own,     ///< by copy-on-write in memory of each rank's own, so that what the program writes is noticed
  shared,  ///< by copy-on-write in one memory for all ranks
};

/// The weights of one model: whether all CPU ranks have them in one memory, and whether somebody has written to them.
///
/// On CPU ranks the storages of the weights can be lent: the first write to one, by whatever way, and the first request
/// for a pointer to write through, give the rank memory of its own for that storage. `notice` finds that out, and from
/// then on each rank has memory of its own there, for good: a pointer may have been kept. Everything that refers to a
/// storage sees what its rank's weights are, at any time. What cannot be noticed are writes through pointers that were
/// taken before the weights were lent, which is in prepare(), and through those that LibTorch gives for reading:
/// const_data_ptr(), storage().data_ptr().
class SharedWeights {
 public:
  /// Refers to `parameters`, like the others for as long as it is used.
  SharedWeights(const NamedTensors& parameters, comm::Communicator& communicator, comm::RankGroup& group);
  ~SharedWeights();
  SharedWeights(const SharedWeights&) = delete;
  SharedWeights& operator=(const SharedWeights&) = delete;

  /// Lends the weights that can be: whose storage is ordinary CPU memory, the same bits on all ranks, and has not been
  /// written to while it was lent before. To be called when the parameters are others, too. Collective.
  void lend(Lending lending);

  /// Lends as `lend` did when it was called last. Collective.
  void lend_again() { lend(lending_); }

  /// No storage is lent any more; each rank has memory of its own. Not collective: weights may be read meanwhile, and
  /// not be written to.
  void end();

  /// Whether all ranks have the storage of `parameter` in one memory.
  bool shares(const at::Tensor& parameter) const;

  /// A number for the storage of `parameter`, the same on all ranks, if it is lent.
  std::optional<std::size_t> lent_storage(const at::Tensor& parameter) const;

  /// Whether this rank's `parameter` was written to, or got another storage, since it was lent.
  bool touched(const at::Tensor& parameter) const;

  /// Gives up lending the storages that any rank has touched. Collective.
  void notice();

  /// Gives up lending these storages, the same on all ranks.
  void give_up(const std::vector<std::size_t>& storages);

  /// Gives every rank memory of its own, which stays lent, until `share`. Collective.
  void separate();

  /// Puts what was separated back in one memory. What is not the same on all ranks by now is given up. Collective.
  void share();

  /// Calls `write`, which may write to this rank's weights; that does not count as touched. Where ranks share memory it
  /// is written to.
  void write(const std::function<void()>& write);

  /// The storage of `parameter`; null when it is not lent.
  int first_rank() const;  // of this process
  LentStorage* storage_of(const at::Tensor& parameter) const;

  // ---- where nothing is lent, as on GPUs: LibTorch's count of a tensor's versions

  /// To be called after each write that is known of.
  void accept();

  /// Whether a parameter that is not lent was written to by an operator, or got other memory, since the last `accept`.
  bool written() const;

  // ---- whether ranks have the same weights

  /// A parameter of a rank that is not as rank 0's.
  struct Difference {
    int rank;
    at::Tensor parameter;
  };

  /// The first one of the first rank that has any; nothing where all ranks' weights are the same bits. Collective; the
  /// same on all ranks.
  std::optional<Difference> difference() const;

  /// Whether the program has been told that ranks' weights differ, which is done once.
  bool told_of_difference = false;

 private:
  struct Candidates;
  struct Seen {
    const void* data;
    std::uint32_t version;
  };

  Candidates candidates() const;
  std::vector<std::uint8_t> agreed(const std::vector<std::uint8_t>& mine, bool any) const;

  const NamedTensors& parameters_;
  comm::Communicator& communicator_;
  comm::RankGroup& group_;
  Lending lending_ = Lending::none;
  bool separated_ = false;
  std::vector<std::unique_ptr<LentStorage>> lent_;                  // null: given up. The same places on all ranks.
  std::unordered_map<const void*, std::size_t> place_of_;           // of a parameter in lent_
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> touched_;  // of this rank, which may have been touched
  std::vector<Seen> seen_;
};

}  // namespace tandem::nn
