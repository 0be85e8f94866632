// C++ objects that ranks show each other.
#pragma once

#include <functional>
#include <optional>
#include <typeinfo>
#include <vector>

#include "tandem/comm/rank_group.h"

namespace tandem::comm {

/// Calls `read` with the object of each rank, in rank order, while all are there. Collective.
void exchange_objects(RankGroup& group, int rank, const CallRecord& record, const void* object,
                      const std::function<void(int peer, const void* theirs)>& read);

/// Every rank's `object`, by rank, copied. Collective.
template <class T>
std::vector<T> gather_objects(RankGroup& group, int rank, const T& object) {
  std::vector<T> objects;
  exchange_objects(group, rank, describe_object_call(Operation::gather_objects, typeid(T)), &object,
                   [&](int, const void* theirs) { objects.push_back(*static_cast<const T*>(theirs)); });
  return objects;
}

/// Rank `root`'s object, copied. Collective.
template <class T>
T broadcast_object(RankGroup& group, int rank, const T& object, int root = 0) {
  auto record = describe_object_call(Operation::broadcast_object, typeid(T));
  record.root = root;
  std::optional<T> copy;
  exchange_objects(group, rank, record, &object, [&](int peer, const void* theirs) {
    if (peer == root) copy.emplace(*static_cast<const T*>(theirs));
  });
  return *std::move(copy);
}

}  // namespace tandem::comm
