#include "net_sizes.h"

#include <algorithm>
#include <numeric>

namespace train {
namespace {

constexpr double kFloat = 4;              // bytes
constexpr double kTestImages = 100;       // of a batch of the test set
constexpr double kTestText = 100 * 128;   // bytes of a batch of the validation
constexpr double kMnist = 70'000 * 785.;  // bytes of the images and labels in memory

// Each layer keeps its input; a gradient as wide as the widest is on its way.
NetSizes mlp(const std::vector<std::int64_t>& hidden) {
  NetSizes sizes{.data_bytes = kMnist};
  std::int64_t width = 28 * 28;
  for (const std::int64_t next : hidden) {
    sizes.parameters += (width + 1) * next;
    width = next;
  }
  sizes.parameters += (width + 1) * 10;
  const auto kept = static_cast<double>(std::accumulate(hidden.begin(), hidden.end(), std::int64_t{28 * 28 + 30}));
  const auto widest = static_cast<double>(*std::max_element(hidden.begin(), hidden.end()));
  sizes.training_bytes = kFloat * (kept + widest);
  sizes.evaluation_bytes = kTestImages * kFloat * (28 * 28 + 2 * widest);
  return sizes;
}

NetSizes cnn() {
  return {.parameters = 320 + 18'496 + 9216 * 128 + 128 + 1290,
          .training_bytes = 850e3,
          .evaluation_bytes = kTestImages * 430e3,
          .data_bytes = kMnist};
}

// A block keeps 17 numbers a token and unit of width: both norms' inputs and results, queries, keys, values, what
// attention gives before and after its heads are joined, and the 4-fold hidden layer before and after GELU.
NetSizes gpt(const GptOptions& options) {
  const auto w = static_cast<double>(options.width);
  const auto layers = static_cast<double>(options.layers);
  NetSizes sizes;
  sizes.parameters = options.layers * (12 * options.width * options.width + 13 * options.width) +
                     (256 + options.block_size) * options.width + 2 * options.width + 256 * options.width;
  sizes.training_bytes =
      kFloat * static_cast<double>(options.block_size) * (17 * w * layers + 2 * w + 3 * 256);  // scores three times
  const double tokens = std::max(kTestText, static_cast<double>(options.block_size));
  sizes.evaluation_bytes = kFloat * tokens * (12 * w + 2 * 256);
  return sizes;
}

}  // namespace

NetSizes sizes_of(const Options& options) {
  switch (options.model) {
    case ModelKind::mlp: return mlp(options.hidden);
    case ModelKind::cnn: return cnn();
    case ModelKind::gpt: return gpt(options.gpt);
  }
  return {};
}

}  // namespace train
