#pragma once

#include <cstdint>

#include "tandem/metrics/metric.h"

namespace tandem::metrics {

/// What Perplexity and BitsPerByte count.
struct LanguageOptions {
  std::int64_t ignored_target = -100;  ///< tokens with this target do not count
  at::Tensor bytes_of_token{};  ///< of BitsPerByte: int64 [V], how many bytes each token stands for; none: 1 each
};

/// e to the mean of -log p(token), computed in float64. Logits [N, …, V] and tokens [N, …].
class Perplexity : public Metric {
 public:
  /// Of `rank` and the others.
  explicit Perplexity(Rank& rank, LanguageOptions options = {});

 protected:
  /// For metrics that come from the same sums.
  Perplexity(Rank& rank, LanguageOptions options, std::string name);
  at::Tensor result(const States& of_all) const override;

 private:
  void add(const at::Tensor& outputs, const at::Tensor& targets) override;
  LanguageOptions options_;
};

/// The sum of -log2 p(token) divided by how many bytes the tokens stand for: what a model compresses text to. Logits
/// [N, …, V] and tokens [N, …].
class BitsPerByte : public Perplexity {
 public:
  /// Of `rank` and the others.
  explicit BitsPerByte(Rank& rank, LanguageOptions options = {});

 private:
  at::Tensor result(const States& of_all) const override;
};

}  // namespace tandem::metrics
