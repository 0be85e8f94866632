#pragma once

#include <cstdint>
#include <vector>

#include "tandem/comm/deferred_scalars.h"
#include "tandem/tandem.h"

namespace train {

/// The losses of some of a rank's batches. Their sum stays on the rank's device.
struct Losses {
  at::Tensor sum;            ///< undefined: of no batch
  std::int64_t batches = 0;  ///< that had samples
  // In exact mode, of whole windows and already those of all ranks:
  double sum_of_means = 0;  ///< over the batches of each
  std::int64_t windows = 0;

  void add(const Losses& more);
};

using tandem::comm::DeferredScalars;

/// What `mean_of` needs of each rank.
std::vector<DeferredScalars::Scalar> scalars_of(const Losses& losses);

/// The mean over the batches of all ranks, when their `scalars_of` have `arrived`. `losses`: this rank's.
double mean_of(const Losses& losses, const DeferredScalars::Arrived& arrived);

/// The same at once. Waits for the device. Collective.
double mean_over_ranks(tandem::Accelerator& accelerator, const Losses& losses);

}  // namespace train
