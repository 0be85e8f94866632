// How a training set is divided into batches, as far as that is known before the ranks start.
#pragma once

#include <cstdint>
#include <string>

#include "options.h"
#include "tandem/data/epoch_plan.h"

namespace train {

/// An epoch over so many samples.
tandem::data::EpochPlan plan_of(const Options& options, std::int64_t samples);

/// Throws tandem::ConfigError when --drop-last would leave nothing of so many samples.
void check_fills_a_step(const Options& options, std::int64_t samples);

/// For people; empty: no step takes more samples than there are.
std::string what_is_repeated(const tandem::data::EpochPlan& plan);

/// The flag that says how large a batch is, with its value.
std::string batch_flag(const Options& options);

/// Why a rank trains on one sample alone, in a step that will be made; empty: none does.
std::string why_batch_of_one(const Options& options, const tandem::data::EpochPlan& plan);

/// Optimizer updates of an epoch, as many as any rank has.
std::int64_t updates_of_epoch(const Options& options, const tandem::data::EpochPlan& plan);

}  // namespace train
