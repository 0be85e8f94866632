#include "comm/objects.h"

namespace tandem::comm {

void exchange_objects(RankGroup& group, int rank, const CallRecord& record, const void* object,
                      const std::function<void(int peer, const void* theirs)>& read) {
  const RankGroup::Call call(group, rank, record, object);
  for (int peer = 0; peer < group.world_size(); ++peer) read(peer, call.object(peer));
}

}  // namespace tandem::comm
