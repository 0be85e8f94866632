#include "nn/clip_gradients.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_set>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include "nn/memory.h"

namespace tandem::nn {
namespace {

constexpr double kKeepsFromDividingByZero = 1e-6;  // PyTorch's
constexpr std::int64_t kBlocksOfTask = 64;         // as much as at::parallel_for's usual grain

std::vector<at::Tensor> tensors_of(const std::vector<ReducedGradient>& gradients) {
  std::vector<at::Tensor> tensors;
  for (const ReducedGradient& one : gradients) tensors.push_back(one.gradient);
  return tensors;
}

bool has_blocks(const at::Tensor& gradient) {
  return gradient.is_cpu() && gradient.layout() == at::kStrided && at::isFloatingType(gradient.scalar_type()) &&
         gradient.element_size() > 1;
}

double add_blocks(double total, const at::Tensor& gradient) {
  const at::Tensor dense = gradient.is_non_overlapping_and_dense() ? gradient : gradient.detach().contiguous();
  const auto type = comm::element_type(dense.scalar_type());
  const auto* const data = static_cast<const char*>(dense.const_data_ptr());
  const std::int64_t elements = dense.numel();
  std::vector<double> sums(static_cast<std::size_t>((elements + comm::kReductionBlock - 1) / comm::kReductionBlock));
  at::parallel_for(0, std::ssize(sums), kBlocksOfTask, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t at = block * comm::kReductionBlock;
      sums[static_cast<std::size_t>(block)] =
          comm::sum_of_squares(type, data + at * dense.element_size(), std::min(comm::kReductionBlock, elements - at));
    }
  });
  return std::accumulate(sums.begin(), sums.end(), total);
}

double add_known(double total, const at::Tensor& squares) {
  const double* const sums = squares.const_data_ptr<double>();
  return std::accumulate(sums, sums + squares.numel(), total);
}

at::Tensor norm_of_blocks(const std::vector<ReducedGradient>& gradients) {
  double total = 0;
  auto type = gradients.front().gradient.scalar_type();
  for (const auto& [gradient, parameter, reducer, shared] : gradients) {
    total = shared && shared->squares.defined() ? add_known(total, shared->squares) : add_blocks(total, gradient);
    type = c10::promoteTypes(type, gradient.scalar_type());
  }
  return at::scalar_tensor(std::sqrt(total), at::dtype(type));
}

// What gradients of that norm are multiplied by. NaN makes all of them NaN.
double factor_of(const at::Tensor& norm, double max_norm) {
  return max_norm / (norm.item<double>() + kKeepsFromDividingByZero);
}

bool changes_anything(double factor) { return !(factor >= 1.0); }

// This rank's part of the memory, all of it counted as one row.
void scale_part(const std::vector<ReducedGradient>& gradients, double factor, int rank, int ranks) {
  std::int64_t total = 0, offset = 0;
  for (const ReducedGradient& one : gradients) total += one.gradient.numel();
  std::vector<at::Tensor> parts;
  for (const ReducedGradient& one : gradients) {
    const at::Tensor& memory = one.shared->memory;
    const auto inside = [&](std::int64_t at) { return std::clamp(at - offset, std::int64_t{0}, memory.numel()); };
    const std::int64_t begin = inside(total * rank / ranks), end = inside(total * (rank + 1) / ranks);
    if (begin < end) parts.push_back(tensor_on(memory, memory.storage_offset() + begin, {end - begin}, {1}));
    offset += memory.numel();
  }
  if (!parts.empty()) at::_foreach_mul_(parts, factor);
}

}  // namespace

std::vector<ReducedGradient> reduced_gradients(const GradientReducers& models,
                                               const std::vector<at::Tensor>& parameters) {
  std::vector<ReducedGradient> gradients;
  std::unordered_set<const void*> seen;  // modules list tied weights several times
  for (const at::Tensor& parameter : parameters) {
    if (!parameter.grad().defined() || !seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    GradientReducer* const reducer = models.find(parameter);
    gradients.push_back({parameter.grad(), parameter, reducer, {}});
    if (!reducer) continue;
    reducer->add_up_squares();
    gradients.back().shared = reducer->shared_gradient(parameter);
  }
  return gradients;
}

at::Tensor total_norm(const std::vector<ReducedGradient>& gradients, double norm_type) {
  const at::NoGradGuard no_grad;
  const bool blocks = norm_type == 2.0 && std::all_of(gradients.begin(), gradients.end(),
                                                      [](const auto& one) { return has_blocks(one.gradient); });
  return blocks ? norm_of_blocks(gradients)
                : at::stack(at::_foreach_norm(tensors_of(gradients), norm_type)).norm(norm_type);
}

void clip_each(const std::vector<ReducedGradient>& gradients, const at::Tensor& norm, double max_norm) {
  const at::NoGradGuard no_grad;
  const auto tensors = tensors_of(gradients);
  if (!norm.is_cpu()) {
    at::_foreach_mul_(tensors, (max_norm / (norm + kKeepsFromDividingByZero)).clamp_max(1.0));
    return;
  }
  // The norm is there already, and gradients that need no clipping are not touched.
  const double factor = factor_of(norm, max_norm);
  if (changes_anything(factor)) at::_foreach_mul_(tensors, factor);
}

void clip_together(const std::vector<ReducedGradient>& gradients, const at::Tensor& norm, double max_norm,
                   comm::RankGroup& group, int rank) {
  const at::NoGradGuard no_grad;
  const bool shared = std::all_of(gradients.begin(), gradients.end(), [](const auto& one) { return one.shared; });
  const comm::CallRecord record{.operation = comm::Operation::clip_gradients,
                                .tensors = static_cast<std::int32_t>(gradients.size())};
  bool all_share = true;
  {
    const comm::RankGroup::Call call(group, rank, record, &shared);
    for (int peer = 0; peer < group.world_size(); ++peer) all_share = all_share && call.payload<bool>(peer);
    if (const double factor = factor_of(norm, max_norm); all_share && changes_anything(factor)) {
      scale_part(gradients, factor, rank, group.world_size());
      for (const ReducedGradient& one : gradients) one.reducer->shared_gradient_written(one.parameter);
    }
  }
  if (!all_share) clip_each(gradients, norm, max_norm);
}

}  // namespace tandem::nn
