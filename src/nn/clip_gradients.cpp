#include "nn/clip_gradients.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <unordered_set>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include "comm/check_tensors.h"
#include "comm/rank_group.h"
#include "nn/tensor_layout.h"
#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

constexpr double kKeepsFromDividingByZero = 1e-6;  // PyTorch's
constexpr std::int64_t kBlocksOfTask = 64;         // as much as at::parallel_for's usual grain

// What is multiplied when the gradients are. (Those entries of a sparse tensor that have one place add up.)
std::vector<at::Tensor> factors_of(const std::vector<ReducedGradient>& gradients) {
  std::vector<at::Tensor> tensors;
  for (const ReducedGradient& one : gradients)
    tensors.push_back(one.gradient.is_sparse() ? one.gradient.detach()._values() : one.gradient);
  return tensors;
}

// Numbers whose norm is that of the gradient.
at::Tensor numbers_of(const at::Tensor& gradient, double norm_type) {
  if (!gradient.is_sparse()) return gradient;
  const at::Tensor values = gradient.detach().coalesce().values();
  // Where the zeros between them count, one does as well as all.
  if (norm_type >= 0 || values.numel() == gradient.numel()) return values;
  return at::cat({values.flatten(), at::zeros({1}, values.options())});
}

// Of the gradients that have elements; the maximum of none is not defined.
std::vector<at::Tensor> numbers_of(const std::vector<ReducedGradient>& gradients, double norm_type) {
  std::vector<at::Tensor> numbers;
  for (const ReducedGradient& one : gradients)
    if (at::Tensor some = numbers_of(one.gradient, norm_type); some.numel() > 0) numbers.push_back(std::move(some));
  return numbers;
}

at::Tensor zero_norm(const std::vector<ReducedGradient>& gradients) {
  const at::Tensor& first = gradients.front().gradient;
  return at::zeros({}, at::dtype(c10::toRealValueType(first.scalar_type())).device(first.device()));
}

bool has_blocks(const at::Tensor& gradient) {
  return gradient.is_cpu() && (gradient.layout() == at::kStrided || gradient.is_sparse()) &&
         at::isFloatingType(gradient.scalar_type()) && gradient.element_size() > 1;
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
    total = shared && shared->squares.defined() ? add_known(total, shared->squares)
                                                : add_blocks(total, numbers_of(gradient, 2.0));
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

std::vector<ReducedGradient> reduced_gradients(const ReducerGroup& models, const std::vector<at::Tensor>& parameters) {
  std::vector<ReducedGradient> gradients;
  std::unordered_set<const void*> seen;  // modules list tied weights several times
  for (const at::Tensor& parameter : parameters) {
    if (!parameter.grad().defined() || !seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    ModelReducer* const reducer = models.find(parameter);
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
  if (blocks) return norm_of_blocks(gradients);
  const auto numbers = numbers_of(gradients, norm_type);
  return numbers.empty() ? zero_norm(gradients) : at::stack(at::_foreach_norm(numbers, norm_type)).norm(norm_type);
}

at::Tensor total_norm_as_torch(const std::vector<ReducedGradient>& gradients, double norm_type) {
  const at::NoGradGuard no_grad;
  const bool largest = norm_type == std::numeric_limits<double>::infinity();
  if (norm_type == 0)
    return at::full({}, static_cast<double>(gradients.size()), at::device(gradients.front().gradient.device()));
  std::vector<at::Tensor> norms;
  for (const ReducedGradient& one : gradients) {
    const at::Tensor numbers = numbers_of(one.gradient, norm_type);
    if (numbers.numel() == 0 && (largest || norm_type < 0)) continue;  // not defined
    norms.push_back(largest ? numbers.abs().max() : numbers.norm(norm_type));
  }
  if (norms.size() < 2) return norms.empty() ? zero_norm(gradients) : norms.front();
  return largest ? at::stack(norms).max() : at::stack(norms).norm(norm_type);
}

void clip_as_torch(const std::vector<ReducedGradient>& gradients, const at::Tensor& norm, double max_norm) {
  const at::NoGradGuard no_grad;
  const at::Tensor factor = (max_norm / (norm + kKeepsFromDividingByZero)).clamp_max(1.0);
  for (const at::Tensor& tensor : factors_of(gradients)) tensor.mul_(factor);
}

void clip_each(const std::vector<ReducedGradient>& gradients, const at::Tensor& norm, double max_norm) {
  const at::NoGradGuard no_grad;
  const auto tensors = factors_of(gradients);
  if (!norm.is_cpu()) {
    at::_foreach_mul_(tensors, (max_norm / (norm + kKeepsFromDividingByZero)).clamp_max(1.0));
    return;
  }
  // The norm is there already, and gradients that need no clipping are not touched.
  const double factor = factor_of(norm, max_norm);
  if (changes_anything(factor)) at::_foreach_mul_(tensors, factor);
}

void clip_values(const at::Tensor& gradient, double limit) {
  const at::NoGradGuard no_grad;
  if (!gradient.is_sparse()) {
    gradient.clamp_(-limit, limit);
    return;
  }
  if (limit < 0)
    throw ConfigError("clip_grad_value_ of a sparse gradient with the limit " + std::to_string(limit) +
                      ", which no zero is within; use 0 or more");
  const at::Tensor coalesced = gradient.detach().coalesce();
  coalesced._values().clamp_(-limit, limit);
  if (!gradient.is_coalesced()) gradient.copy_(coalesced);  // a detached one would change alone
}

void clip_together(const std::vector<ReducedGradient>& gradients, const at::Tensor& norm, double max_norm,
                   comm::RankGroup& group, int rank) {
  const at::NoGradGuard no_grad;
  const bool shared = std::all_of(gradients.begin(), gradients.end(), [](const auto& one) { return one.shared; });
  const comm::CallRecord record{.operation = "clip_gradients", .tensors = static_cast<std::int32_t>(gradients.size())};
  const comm::NodePlace& place = group.place();
  bool all_share = true;  // of this process's ranks
  {
    const comm::RankGroup::Call call(group, rank, record, &shared);
    for (int peer = place.first_rank; peer < place.end_rank(); ++peer)
      all_share = all_share && call.payload<bool>(peer);
    if (const double factor = factor_of(norm, max_norm); all_share && changes_anything(factor)) {
      scale_part(gradients, factor, rank - place.first_rank, place.local_ranks);
      for (const ReducedGradient& one : gradients) one.reducer->shared_gradient_written(one.parameter);
    }
  }
  if (!all_share) clip_each(gradients, norm, max_norm);
}

}  // namespace tandem::nn
