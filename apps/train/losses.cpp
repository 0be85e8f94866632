#include "losses.h"

#include <vector>

namespace train {

void Losses::add(const Losses& more) {
  sum = sum.defined() ? sum + more.sum : more.sum;
  batches += more.batches;
  sum_of_means += more.sum_of_means;
  windows += more.windows;
}

double mean_over_ranks(tandem::Accelerator& accelerator, const Losses& losses) {
  if (losses.windows > 0) return losses.sum_of_means / static_cast<double>(losses.windows);
  const std::vector<double> mine{losses.sum.item<double>(), static_cast<double>(losses.batches)};
  const at::Tensor all = accelerator.reduce(at::tensor(mine, at::kDouble).to(accelerator.device()));
  return all[0].item<double>() / all[1].item<double>();
}

}  // namespace train
