#include "class_report.h"

#include <algorithm>
#include <cstdio>

#include <torch/nn/functional/loss.h>

namespace train {
namespace {

constexpr std::int64_t kWorst = 16;  // pictures that are shown

tandem::io::Matrix confusion(const at::Tensor& labels, const at::Tensor& taken_for, std::vector<std::string> classes) {
  const auto size = static_cast<std::int64_t>(classes.size());
  const at::Tensor counts = at::bincount(labels * size + taken_for, {}, size * size).to(at::kDouble);
  tandem::io::Matrix matrix{.labels = std::move(classes), .values = {}};
  const double* count = counts.const_data_ptr<double>();
  for (std::int64_t row = 0; row < size; ++row, count += size) matrix.values.emplace_back(count, count + size);
  return matrix;
}

// "4, taken for 9 (0.99)", with the network's certainty.
std::string caption(const std::string& label, const std::string& taken_for, double certainty) {
  char number[16];
  std::snprintf(number, sizeof number, " (%.2f)", certainty);
  return label == taken_for ? label + number : label + ", taken for " + taken_for + number;
}

// From 0 to 1, as far apart as they were.
at::Tensor brightness(const at::Tensor& images) {
  const at::Tensor least = images.amin();
  return (images - least) / (images.amax() - least).clamp_min(1e-12);
}

}  // namespace

void ClassReport::add(const at::Tensor& scores, const at::Tensor& labels) {
  scores_.push_back(scores.to(at::kCPU, at::kFloat));
  labels_.push_back(labels.to(at::kCPU).view(-1));
}

void ClassReport::log(tandem::io::TrackerSet& trackers, const Samples& test_set,
                      const std::vector<std::string>& classes, std::int64_t step) const {
  const at::Tensor chances = at::cat(scores_).log_softmax(1), labels = at::cat(labels_);
  const at::Tensor losses = -chances.gather(1, labels.unsqueeze(1)).squeeze(1);
  const auto [certainty, taken_for] = chances.max(1);
  trackers.log_matrix("eval/confusion", confusion(labels, taken_for, classes), step);

  const at::Tensor worst = std::get<1>(losses.topk(std::min(kWorst, losses.numel())));
  std::vector<std::size_t> samples;
  std::vector<std::string> captions;
  for (std::int64_t i = 0; i < worst.numel(); ++i) {
    const auto sample = worst[i].item<std::int64_t>();
    const auto name = [&](const at::Tensor& of) {
      return classes[static_cast<std::size_t>(of[sample].item<std::int64_t>())];
    };
    samples.push_back(static_cast<std::size_t>(sample));
    captions.push_back(caption(name(labels), name(taken_for), certainty[sample].exp().item<double>()));
  }
  const at::Tensor inputs = test_set.read(samples).data;
  const bool are_pictures = inputs.dim() == 4 && (inputs.size(1) == 1 || inputs.size(1) == 3);
  if (are_pictures) trackers.log_images("eval/worst", brightness(inputs), step, captions);
}

}  // namespace train
