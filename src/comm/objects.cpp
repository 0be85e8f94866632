#include "tandem/comm/detail/objects.h"
#include "comm/agree.h"
#include "comm/check_tensors.h"
#include "comm/rank_group.h"

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
  RankGroup::Call call;
};

ObjectExchange::ObjectExchange(RankGroup& group, int rank, const ObjectCall& call, const void* object)
    : world_size_(group.world_size()), open_(new Open{{group, rank, checked(group, rank, call), object}}) {}

ObjectExchange::~ObjectExchange() = default;

const void* ObjectExchange::object_of(int rank) const { return &open_->call.payload<std::byte>(rank); }

}  // namespace tandem::comm::detail
