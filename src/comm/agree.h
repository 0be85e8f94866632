#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>

#include "comm/rank_group.h"
#include "tandem/core/error.h"

/// \file
/// How an error of one rank becomes that of all: the ranks meet first, and then all throw or none. A body that catches
/// it can go on, since its calls still stand in line with those of the others.
namespace tandem::comm {

/// What `check` throws; null when it throws nothing. Cancelled goes on at once.
template <class Check>
std::exception_ptr refusal_of(const Check& check) {
  try {
    check();
  } catch (const Cancelled&) {
    throw;
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

/// Runs `check`, and throws on all ranks what it throws on the first rank on which it does: that very object, for which
/// `check` must leave nothing behind. Cancelled goes on at once. Collective.
void check_together(RankGroup& group, int rank, const CallRecord& record, const std::function<void()>& check);

/// What one rank says of the call that it is about to make.
struct Claim {
  std::uint64_t signature = 0;            ///< of all that must be alike on the ranks
  std::exception_ptr refusal;             ///< why this rank cannot make the call; null: it can
  std::function<std::string()> describe;  ///< the call as a person reads it; asked for when the ranks differ
};

/// Returns when all ranks have come, with the same signature and without a refusal. Otherwise throws on all ranks: the
/// refusal where all have one, or a CollectiveError that names the first rank that refuses, or two that differ.
/// `record` is for reports and its operation alone is compared. Collective.
void agree(RankGroup& group, int rank, CallRecord record, const Claim& claim);

}  // namespace tandem::comm
