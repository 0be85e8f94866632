#include "comm/agree.h"

#include <algorithm>
#include <vector>

#include "comm/error_text.h"
#include "tandem/core/error.h"

namespace tandem::comm {
namespace {

// What a rank tells the others when not all is well.
struct Told {
  std::uint64_t signature;
  std::exception_ptr refusal;
  std::string call;
};

std::string at(std::size_t rank) { return " on rank " + std::to_string(rank); }

// The error of all ranks; the same on each, since all see the same.
std::exception_ptr error_of(const std::vector<Told>& told) {
  const auto refuses = [](const Told& one) { return one.refusal != nullptr; };
  if (std::all_of(told.begin(), told.end(), refuses)) return told.front().refusal;
  const auto first = std::find_if(told.begin(), told.end(), refuses);
  if (first != told.end())
    return std::make_exception_ptr(CollectiveError(text_of(first->refusal) + " (" +
                                                   at(static_cast<std::size_t>(first - told.begin())).substr(1) + ")"));
  const auto other =
      std::find_if(told.begin(), told.end(), [&](const Told& one) { return one.signature != told.front().signature; });
  return std::make_exception_ptr(CollectiveError(
      "ranks make different collective calls: " + told.front().call + at(0) + ", but " + other->call +
      at(static_cast<std::size_t>(other - told.begin())) + "; all ranks must give the same structure and types"));
}

}  // namespace

void check_together(RankGroup& group, int rank, const CallRecord& record, const std::function<void()>& check) {
  const std::exception_ptr mine = refusal_of(check);
  std::exception_ptr first;
  {
    const RankGroup::Call call(group, rank, record, &mine);
    for (int peer = 0; peer < group.world_size() && !first; ++peer) first = call.payload<std::exception_ptr>(peer);
  }
  if (first) std::rethrow_exception(first);
}

void agree(RankGroup& group, int rank, CallRecord record, const Claim& claim) {
  constexpr std::uint64_t kRefused = 0;
  record.agrees = true;
  const std::uint64_t mine = claim.refusal ? kRefused : std::max<std::uint64_t>(claim.signature, kRefused + 1);
  const auto all = group.meet(rank, record, mine);
  if (mine != kRefused && std::all_of(all.begin(), all.end(), [&](std::uint64_t one) { return one == mine; })) return;
  const Told told{mine, claim.refusal, claim.refusal ? "" : claim.describe()};
  std::vector<Told> of_all;
  {
    const RankGroup::Call call(group, rank, record, &told);
    for (int peer = 0; peer < group.world_size(); ++peer) of_all.push_back(call.payload<Told>(peer));
  }
  std::rethrow_exception(error_of(of_all));
}

}  // namespace tandem::comm
