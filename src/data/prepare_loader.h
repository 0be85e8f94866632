#pragma once

#include <cstdint>
#include <memory>

#include "comm/nodes/exchange.h"
#include "data/loader_base.h"
#include "data/loader_parts.h"
#include "tandem/data/data_loader.h"
#include "tandem/data/data_loader_configuration.h"

namespace tandem::data {

/// Makes this rank's loader of a DataLoader. Collective. Throws on all ranks the same: ConfigError for options that do
/// not go together, DataError where the ranks' loaders differ, and what the dataset throws; a body that catches it can
/// go on.
std::shared_ptr<LoaderBase> prepare_loader(const DataLoaderOptions& options, const detail::AnyDataset& dataset,
                                           const DataLoaderConfiguration& configuration, std::uint64_t master_seed,
                                           LoaderContext context);

// What it is made of, for who makes and runs the loaders of all ranks in turn, on one thread.

/// Throws ConfigError when options do not go together or are out of range; DataError for shuffling an iterable.
void check_options(const DataLoaderOptions& options, bool iterable);

/// Options of the plan by which a loader of `length` samples is divided into parts for `ranks`, in exact mode the
/// logical ones.
EpochPlanOptions plan_options(const DataLoaderOptions& options, const DataLoaderConfiguration& configuration,
                              std::int64_t length, bool iterable, int ranks);

/// What the ranks of `place`, of this process, share of a loader. Made once, by the first of them. Throws ConfigError
/// for options that do not go together, DataError when there is nothing to shuffle.
std::shared_ptr<const SharedParts> make_shared_parts(const DataLoaderOptions& options,
                                                     const detail::AnyDataset& dataset,
                                                     const DataLoaderConfiguration& configuration, std::uint64_t seed,
                                                     const EpochPlanOptions& plan, const comm::NodePlace& place,
                                                     CancelToken& token);

/// The loader of the rank that `context` names.
std::shared_ptr<LoaderBase> make_loader(const DataLoaderOptions& options, const detail::AnyDataset& dataset,
                                        std::shared_ptr<const SharedParts> shared, std::uint64_t seed,
                                        LoaderContext context);

}  // namespace tandem::data
