// What metrics find wrong with what they are given. Each returns a sentence; empty: nothing is wrong.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>

namespace tandem::metrics {

inline std::string shapes(const at::Tensor& outputs, const at::Tensor& targets) {
  return "outputs of shape " + c10::str(outputs.sizes()) + " and targets of shape " + c10::str(targets.sizes());
}

inline bool has_nan(const at::Tensor& tensor) { return at::isnan(tensor).any().item<bool>(); }

inline std::string wrong_classes(const char* what, const at::Tensor& labels, std::int64_t classes) {
  if (!at::isIntegralType(labels.scalar_type(), /*includeBool=*/true))
    return std::string(what) + " are " + c10::toString(labels.scalar_type()) + "; classes are integers";
  if (labels.numel() == 0) return "";
  const at::Tensor whole = labels.to(at::kLong);
  for (const at::Tensor& one : {whole.min(), whole.max()})
    if (const auto value = one.item<std::int64_t>(); value < 0 || value >= classes)
      return "a class of " + std::to_string(value) + " among the " + what + "; there are " + std::to_string(classes) +
             " classes, from 0";
  return "";
}

}  // namespace tandem::metrics
