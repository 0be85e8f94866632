#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "data/epoch_steps.h"
#include "tandem/data/loader_state.h"

namespace tandem::data {

/// Where a sampler stands.
struct SamplerPosition {
  at::Tensor state;                     ///< the sampler's, before it drew the running or last epoch; may be undefined
  std::optional<SamplerState> sampler;  ///< of one that is not Tandem's own
};

/// Draws the epochs of a sampler in such a way that they can be drawn again. Belongs to one thread at a time.
class EpochDrawer {
 public:
  /// `options.length` is the sampler's. `seed`: of the default generators that it draws from.
  EpochDrawer(const EpochPlanOptions& options, std::shared_ptr<Sampler> sampler, std::uint64_t seed);

  /// Of one that makes batches.
  EpochDrawer(const EpochPlanOptions& options, std::shared_ptr<BatchSampler> sampler, std::uint64_t seed);

  /// Draws epoch `epoch`. Throws what the sampler throws, and DataError when it gives another number of samples than
  /// it has.
  std::shared_ptr<const EpochSteps> draw(std::int64_t epoch);

  /// The last sample of an epoch was taken: of the one drawn last, or `before` it.
  void exhausted(bool before);

  /// The position within the epoch drawn last.
  SamplerPosition within() const;

  /// The position in which the next epoch is to be drawn.
  SamplerPosition after() const;

  /// Goes to `position`, in or before epoch `epoch`; returns the steps of the running epoch where they had to be drawn
  /// for that. Throws DataError when the sampler does not come to the order that it had given.
  std::shared_ptr<const EpochSteps> go_to(const SamplerPosition& position, std::int64_t epoch);

 private:
  std::shared_ptr<const EpochSteps> ask(std::int64_t epoch);
  at::Tensor state() const;
  void set_state(const at::Tensor& state);
  bool tells_state() const;
  std::shared_ptr<const EpochSteps> draw_again(const SamplerState& wanted, const at::Tensor& state);
  bool draw_up_to(const std::vector<DrawnEpochs>& epochs, std::uint64_t seed);
  [[noreturn]] void fail(const std::string& problem) const;

  EpochPlanOptions options_;
  std::shared_ptr<Sampler> sampler_;  // one of the two
  std::shared_ptr<BatchSampler> batch_sampler_;
  bool recorded_;               // not Tandem's own, whose state is all that there is to know
  bool hears_the_end_ = false;  // a Sampler, whose exhausted may do something
  std::uint64_t seed_;
  at::Tensor before_last_;          // state before the epoch drawn last
  std::vector<DrawnEpochs> drawn_;  // of a recorded one
  std::uint64_t order_ = 0;         // fingerprint of the last of these
  std::shared_ptr<const EpochSteps> last_;
};

}  // namespace tandem::data
