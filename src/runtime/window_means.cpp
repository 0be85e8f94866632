#include "runtime/window_means.h"

#include <cmath>
#include <numeric>
#include <string>
#include <utility>

#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

// See comm::tree_sum.
double tree_sum(std::vector<double> leaves) {
  for (std::size_t half = leaves.size() / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) leaves[i] += leaves[i + half];
  return leaves.front();
}

}  // namespace

double sum_over_shards(RankContext& context, const char* operation, const std::vector<double>& mine) {
  const comm::detail::ObjectExchange exchange(*context.group, context.rank,
                                              comm::detail::object_call<std::vector<double>>(operation, false), &mine);
  std::vector<double> all;
  for (std::size_t sub_step = 0; sub_step < mine.size(); ++sub_step)
    for (int rank = 0; rank < context.world_size(); ++rank)
      all.push_back(exchange.of<std::vector<double>>(rank)[sub_step]);
  return context.config().exact ? tree_sum(std::move(all)) : std::accumulate(all.begin(), all.end(), 0.0);
}

std::optional<double> WindowMeans::add(double value, double weight) {
  if (!(weight >= 0) || std::isinf(weight))
    throw ConfigError("window_mean with the weight " + std::to_string(weight) + "; use 0 or more");
  const nn::AccumulationWindow& window = context_.window;
  const auto each = static_cast<std::size_t>(context_.shards_each());
  if (!window.in_micro_batch()) next_ = 0;
  if (next_ == values_.size()) values_.push_back({std::vector<double>(each, 0.0), std::vector<double>(each, 0.0)});
  Value& sum = values_[next_++];
  const auto shard = static_cast<std::size_t>(window.sub_step());
  sum.sums[shard] += weight > 0 ? value * weight : 0;
  sum.weights[shard] += weight;
  if (!window.closes_window()) return std::nullopt;
  const Value whole = std::exchange(sum, {std::vector<double>(each, 0.0), std::vector<double>(each, 0.0)});
  const double total = sum_over_shards(context_, "window_mean", whole.sums);
  return total / sum_over_shards(context_, "window_mean", whole.weights);
}

}  // namespace tandem
