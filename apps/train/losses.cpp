#include "losses.h"

namespace train {

void Losses::add(const Losses& more) {
  sum = sum.defined() ? sum + more.sum : more.sum;
  batches += more.batches;
  sum_of_means += more.sum_of_means;
  windows += more.windows;
}

std::vector<DeferredScalars::Scalar> scalars_of(const Losses& losses) {
  return {losses.sum, static_cast<double>(losses.batches)};
}

double mean_of(const Losses& losses, const DeferredScalars::Arrived& arrived) {
  if (losses.windows > 0) return losses.sum_of_means / static_cast<double>(losses.windows);
  return arrived.sum(0) / arrived.sum(1);
}

double mean_over_ranks(tandem::Accelerator& accelerator, const Losses& losses) {
  DeferredScalars scalars(accelerator.communicator(), accelerator.device());
  double mean = 0;
  scalars.add_of_all(scalars_of(losses),
                     [&](const DeferredScalars::Arrived& arrived) { mean = mean_of(losses, arrived); });
  scalars.deliver_all();
  return mean;
}

}  // namespace train
