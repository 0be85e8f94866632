#include "tandem/comm/detail/objects.h"
#include <c10/util/Type.h>

#include "comm/agree.h"
#include "comm/check_tensors.h"
#include "comm/rank_group.h"
#include "tandem/core/error.h"

namespace tandem::comm::detail {
namespace {

CallRecord record_of(const ObjectCall& call) {
  CallRecord record = describe_object_call(call.operation, call.type);
  record.shows_type = call.shows_type;
  record.root = call.root.value_or(-1);
  return record;
}

// Before the ranks exchange anything: all find out when the root of one is none.
void check_roots(RankGroup& group, int rank, const CallRecord& record) {
  agree(group, rank, record,
        {.signature = static_cast<std::uint64_t>(record.root) + 1,
         .refusal = refusal_of([&] { check_root(record.root, group.world_size(), record.operation); }),
         .describe = [&] { return to_string(record); }});
}

CallRecord checked(RankGroup& group, int rank, const ObjectCall& call) {
  const CallRecord record = record_of(call);
  if (call.root) check_roots(group, rank, record);
  return record;
}

}  // namespace

struct ObjectExchange::Open {
  std::vector<std::shared_ptr<const void>> of_others;  // by rank, of other machines
  RankGroup::Call call;
};

namespace {

// Copies of the objects of other machines' ranks; null for those of this one, and where only the root's is wanted.
std::vector<std::shared_ptr<const void>> objects_of_others(RankGroup& group, int rank, const CallRecord& record,
                                                           const ObjectCall& call, const void* object) {
  const NodePlace& place = group.place();
  if (place.nodes == 1) return {};
  if (!call.codec.to_bytes)
    throw ConfigError(std::string(call.operation) + " of " + c10::demangle(call.type.name()) +
                      ", which cannot be sent to other machines; give numbers, strings, tensors and standard "
                      "containers of them, or write to_bytes and from_bytes for it (tandem/comm/object_bytes.h)");
  const bool wanted = !call.root || *call.root == rank;
  const auto all = group.gather_bytes(rank, record, wanted ? call.codec.to_bytes(object) : std::string());
  std::vector<std::shared_ptr<const void>> objects(all.size());
  for (int peer = 0; peer < place.world_size; ++peer) {
    const bool here = peer >= place.first_rank && peer < place.first_rank + place.local_ranks;
    if (!here && (!call.root || *call.root == peer))
      objects[static_cast<std::size_t>(peer)] = call.codec.from_bytes(all[static_cast<std::size_t>(peer)]);
  }
  return objects;
}

}  // namespace

ObjectExchange::ObjectExchange(RankGroup& group, int rank, const ObjectCall& call, const void* object)
    : world_size_(group.world_size()) {
  const CallRecord record = checked(group, rank, call);
  auto others = objects_of_others(group, rank, record, call, object);
  open_.reset(new Open{std::move(others), {group, rank, record, object}});
}

ObjectExchange::~ObjectExchange() = default;

const void* ObjectExchange::object_of(int rank) const {
  const auto place = static_cast<std::size_t>(rank);
  return place < open_->of_others.size() && open_->of_others[place] ? open_->of_others[place].get()
                                                                    : open_->call.object(rank);
}

}  // namespace tandem::comm::detail
