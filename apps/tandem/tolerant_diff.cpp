#include "tolerant_diff.h"

#include <cmath>
#include <limits>

#include <ATen/Functions.h>

#include "io/scalar_types.h"
#include "stored_tensors.h"

namespace tandem_tool {
namespace {

std::string shown(const std::vector<std::int64_t>& shape) { return c10::str(at::IntArrayRef(shape)); }

bool is_number(const tandem::io::StoredTensor& tensor) { return tensor.type && tandem::io::is_number(*tensor.type); }

// 0 where both are NaN, or both the same infinity.
double largest_difference(const at::Tensor& first, const at::Tensor& second) {
  if (first.numel() == 0) return 0;
  const auto wide = first.is_complex() || second.is_complex() ? at::kComplexDouble : at::kDouble;
  const at::Tensor a = first.to(wide), b = second.to(wide);
  const at::Tensor same = a.eq(b).logical_or(a.isnan().logical_and(b.isnan()));
  return (a - b).abs().masked_fill(same, 0).max().item<double>();
}

// NaN where they differ and are no numbers of LibTorch's.
double largest_difference(const StoredTensors& first, const StoredTensors::Entry& a, const StoredTensors& second,
                          const StoredTensors::Entry& b) {
  if (a.tensor.dtype == b.tensor.dtype && at::equal(first.read_bytes(a), second.read_bytes(b))) return 0;
  if (!is_number(a.tensor) || !is_number(b.tensor)) return std::numeric_limits<double>::quiet_NaN();
  return largest_difference(first.read(a), second.read(b));
}

}  // namespace

Difference compare(const std::string& first_path, const std::string& second_path, double tolerance) {
  const StoredTensors first(first_path), second(second_path);
  Difference difference;
  for (const auto& entry : second.entries())
    if (!first.find(entry.tensor.name)) difference.only_in_second.push_back(entry.tensor.name);
  for (const auto& entry : first.entries()) {
    const auto& a = entry.tensor;
    const auto* const other = second.find(a.name);
    if (!other) {
      difference.only_in_first.push_back(a.name);
      continue;
    }
    const auto& b = other->tensor;
    if (a.shape != b.shape) {
      difference.tensors.push_back({a.name, "shape " + shown(a.shape) + " and " + shown(b.shape)});
      continue;
    }
    const double largest = largest_difference(first, entry, second, *other);
    const bool differs = !(largest <= tolerance);  // NaN differs
    if (a.type != b.type)
      difference.tensors.push_back({a.name, "type " + a.dtype + " and " + b.dtype, largest});
    else if (differs)
      difference.tensors.push_back({a.name, "values", largest});
    else
      difference.equal += 1;
  }
  return difference;
}

}  // namespace tandem_tool
