#include "batches.h"

#include <variant>

#include "printable.h"
#include "tandem/core/error.h"

namespace train {

tandem::data::EpochPlan plan_of(const Options& options, std::int64_t samples) {
  const auto& loaders = options.launch.data_loader;
  return tandem::data::EpochPlan({.length = samples,
                                  .batch_size = options.batch_size,
                                  .ranks = options.logical_ranks(),
                                  .drop_last = options.drop_last,
                                  .even_batches = loaders.even_batches,
                                  .split_batches = loaders.split_batches,
                                  .dispatch = loaders.dispatch_batches.value_or(false)});
}

void check_fills_a_step(const Options& options, std::int64_t samples) {
  const std::int64_t step = options.global_batch();
  if (options.drop_last && samples < step)
    throw tandem::ConfigError("the training set of " + counted(samples, "sample") +
                              " is smaller than a batch of all ranks (" + std::to_string(step) +
                              ") with --drop-last; use a smaller --batch-size");
}

std::string what_is_repeated(const tandem::data::EpochPlan& plan) {
  const std::int64_t samples = plan.options().length;
  std::int64_t taken = 0;
  for (int rank = 0; samples < plan.global_batch_size() && rank < plan.options().ranks; ++rank)
    if (plan.steps(rank) > 0) taken += plan.samples(0, rank);
  if (taken <= samples) return {};
  return "a step takes " + counted(taken, "sample") + ", and the training set has " + std::to_string(samples) +
         ": some are repeated in each; use a smaller --batch-size, fewer ranks or --no-even-batches";
}

std::string batch_flag(const Options& options) {
  for (const auto& [name, value] : options.flags)
    if (const auto* const number = std::get_if<std::int64_t>(&value); number && name == "global-batch-size")
      return "--global-batch-size " + std::to_string(*number);
  return "--batch-size " + std::to_string(options.batch_size) +
         (options.launch.data_loader.split_batches ? " with --split-batches" : "");
}

std::string why_batch_of_one(const Options& options, const tandem::data::EpochPlan& plan) {
  const std::int64_t window = options.launch.gradient_accumulation_steps;
  const std::int64_t made = options.max_steps ? *options.max_steps * window : plan.steps(0);
  for (int rank = 0; rank < plan.options().ranks; ++rank) {
    const std::int64_t last = plan.steps(rank) - 1;
    if (last > 0 && plan.samples(0, rank) == 1) return "a rank's batch has one sample";
    if (last >= 0 && last < made && plan.samples(last, rank) == 1)
      return "the last batch of " + counted(plan.options().length, "sample") + " has one sample" +
             (plan.options().ranks > 1 ? " on a rank" : "");
  }
  return {};
}

std::int64_t updates_of_epoch(const Options& options, const tandem::data::EpochPlan& plan) {
  const std::int64_t window = options.launch.gradient_accumulation_steps;
  return (plan.steps(0) + window - 1) / window;
}

}  // namespace train
