#include "comm/agree.h"

#include <algorithm>
#include <vector>

#include "comm/error_text.h"
#include "tandem/comm/object_bytes.h"
#include "tandem/core/error.h"

namespace tandem::comm {
namespace {

// What a rank tells the others when not all is well.
struct Told {
  std::uint64_t signature = 0;
  std::exception_ptr refusal{};
  std::string call{};
};

// An exception as bytes: Tandem's own come back as what they are, others as an Error.
enum class Kind : std::uint8_t { none, config, data, checkpoint, collective, other };

std::string to_bytes(const std::exception_ptr& error) {
  if (!error) return pack(Kind::none);
  const Kind kind = [&] {
    try {
      std::rethrow_exception(error);
    } catch (const ConfigError&) {
      return Kind::config;
    } catch (const DataError&) {
      return Kind::data;
    } catch (const CheckpointError&) {
      return Kind::checkpoint;
    } catch (const CollectiveError&) {
      return Kind::collective;
    } catch (...) {
      return Kind::other;
    }
  }();
  return pack(kind, text_of(error));
}

std::exception_ptr exception_of(std::string_view bytes) {
  if (bytes.size() == pack(Kind::none).size()) return nullptr;
  Kind kind{};
  std::string text;
  unpack(bytes, kind, text);
  switch (kind) {
    case Kind::config: return std::make_exception_ptr(ConfigError(text));
    case Kind::data: return std::make_exception_ptr(DataError(text));
    case Kind::checkpoint: return std::make_exception_ptr(CheckpointError(text));
    case Kind::collective: return std::make_exception_ptr(CollectiveError(text));
    default: return std::make_exception_ptr(Error(text));
  }
}

// Every rank's exception, by rank: the very objects of this node's ranks, and copies of the others'.
std::vector<std::exception_ptr> exceptions_of_all(RankGroup& group, int rank, const CallRecord& record,
                                                  const std::exception_ptr& mine) {
  const NodePlace& place = group.place();
  std::vector<std::exception_ptr> all;
  if (place.nodes > 1)
    for (const std::string& bytes : group.gather_bytes(rank, record, to_bytes(mine)))
      all.push_back(exception_of(bytes));
  all.resize(static_cast<std::size_t>(place.world_size));
  const RankGroup::Call call(group, rank, record, &mine);
  for (int peer = place.first_rank; peer < place.first_rank + place.local_ranks; ++peer)
    all[static_cast<std::size_t>(peer)] = call.payload<std::exception_ptr>(peer);
  return all;
}

// What every rank tells, by rank.
std::vector<Told> told_by_all(RankGroup& group, int rank, const CallRecord& record, const Told& mine) {
  std::vector<Told> all;
  const auto refusals = exceptions_of_all(group, rank, record, mine.refusal);
  for (const std::string& bytes : group.gather_bytes(rank, record, pack(mine.signature, mine.call))) {
    Told told{.refusal = refusals[all.size()]};
    unpack(bytes, told.signature, told.call);
    all.push_back(std::move(told));
  }
  return all;
}

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
  for (const std::exception_ptr& one : exceptions_of_all(group, rank, record, mine))
    if (one) std::rethrow_exception(one);
}

void agree(RankGroup& group, int rank, CallRecord record, const Claim& claim) {
  constexpr std::uint64_t kRefused = 0;
  record.agrees = true;
  const std::uint64_t mine = claim.refusal ? kRefused : std::max<std::uint64_t>(claim.signature, kRefused + 1);
  const auto all = group.meet(rank, record, mine);
  if (mine != kRefused && std::all_of(all.begin(), all.end(), [&](std::uint64_t one) { return one == mine; })) return;
  const Told told{mine, claim.refusal, claim.refusal ? "" : claim.describe()};
  std::rethrow_exception(error_of(told_by_all(group, rank, record, told)));
}

}  // namespace tandem::comm
