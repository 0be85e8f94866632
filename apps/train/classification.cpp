#include "classification.h"

#include <array>
#include <cstdio>

#include <torch/nn/functional/loss.h>

namespace train {

namespace F = torch::nn::functional;

// Targets are labels [B], or probabilities [B, classes] where samples were mixed.
at::Tensor Classification::loss(const at::Tensor& scores, const at::Tensor& targets) const {
  return F::cross_entropy(scores, targets, F::CrossEntropyFuncOptions().label_smoothing(label_smoothing_));
}

at::Tensor Classification::judge(const at::Tensor& scores, const at::Tensor& labels) const {
  const at::Tensor wide = scores.to(at::kFloat);
  std::vector<at::Tensor> figures{wide.argmax(1).eq(labels).to(at::kFloat)};
  if (has_top5()) figures.push_back(std::get<1>(wide.topk(5, 1)).eq(labels.unsqueeze(1)).any(1).to(at::kFloat));
  figures.push_back(F::cross_entropy(wide, labels, F::CrossEntropyFuncOptions().reduction(torch::kNone)));
  return at::stack(figures, 1);
}

Verdict Classification::verdict(const std::vector<double>& means) const {
  std::array<char, 64> sentence;
  std::snprintf(sentence.data(), sentence.size(), " accuracy %.2f %%", means[0] * 100);
  Verdict verdict{judged_on_ + sentence.data(), {{"accuracy", means[0]}}};
  if (has_top5()) verdict.figures.emplace_back("top5_accuracy", means[1]);
  verdict.figures.emplace_back("loss", means.back());
  return verdict;
}

}  // namespace train
