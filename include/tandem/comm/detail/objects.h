#pragma once

#include <concepts>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <typeinfo>
#include <vector>

#include "tandem/comm/object_bytes.h"

namespace tandem::comm {

class RankGroup;

namespace detail {

/// How objects of a call's type go to ranks of other machines; null members: they cannot.
struct ObjectCodec {
  std::string (*to_bytes)(const void* object) = nullptr;
  std::shared_ptr<const void> (*from_bytes)(std::string_view bytes) = nullptr;
};

template <class T>
ObjectCodec codec_of() {
  if constexpr (has_bytes<T> && std::default_initializable<T>)
    return {[](const void* object) { return pack(*static_cast<const T*>(object)); },
            [](std::string_view bytes) -> std::shared_ptr<const void> {
              auto object = std::make_shared<T>();
              unpack(bytes, *object);
              return object;
            }};
  else
    return {};
}

/// A call in which ranks read each other's C++ objects.
struct ObjectCall {
  const char* operation;         ///< what errors call it: a literal, the same on all ranks
  const std::type_info& type;    ///< of the objects
  bool shows_type = true;        ///< whether errors name the type too: one of the program's
  std::optional<int> root = {};  ///< the rank whose object is wanted; empty: all are
  ObjectCodec codec = {};        ///< between machines
};

/// The call `operation` with objects of type T.
template <class T>
ObjectCall object_call(const char* operation, bool shows_type = true, std::optional<int> root = {}) {
  return {operation, typeid(T), shows_type, root, codec_of<T>()};
}

/// One rank's part of an ObjectCall: while it is alive, the ranks' objects may be read: those of this machine where
/// they are, and copies of the others'.
class ObjectExchange {
 public:
  /// Waits for all ranks. `object`, of the call's type, may be read by the others until the destructor has returned.
  /// Collective. Throws like RankGroup::Call, CollectiveError on all ranks when the root of one is no rank, or they
  /// are not the same, and ConfigError that names the type when there are several machines and it cannot be sent.
  ObjectExchange(RankGroup& group, int rank, const ObjectCall& call, const void* object);

  /// Waits until all ranks have read; this cannot be cancelled.
  ~ObjectExchange();
  ObjectExchange(const ObjectExchange&) = delete;
  ObjectExchange& operator=(const ObjectExchange&) = delete;

  /// How many ranks take part.
  int world_size() const noexcept { return world_size_; }

  /// `rank`'s object, of the type that all ranks gave.
  template <class T>
  const T& of(int rank) const {
    return *static_cast<const T*>(object_of(rank));
  }

 private:
  struct Open;

  const void* object_of(int rank) const;

  const int world_size_;
  std::unique_ptr<Open> open_;
};

/// Every rank's `object`, by rank, copied. Collective.
template <class T>
std::vector<T> gather_objects(RankGroup& group, int rank, const T& object) {
  const ObjectExchange exchange(group, rank, object_call<T>("gather_objects"), &object);
  std::vector<T> objects;
  for (int peer = 0; peer < exchange.world_size(); ++peer) objects.push_back(exchange.template of<T>(peer));
  return objects;
}

/// Rank `root`'s object, copied. Throws CollectiveError on all ranks when `root` is no rank, or not the same on all.
/// Collective.
template <class T>
T broadcast_object(RankGroup& group, int rank, const T& object, int root) {
  const ObjectExchange exchange(group, rank, object_call<T>("broadcast_object", true, root), &object);
  return exchange.template of<T>(root);
}

/// Rank 0's object, copied, for Tandem's own calls. Collective.
template <class T>
T object_of_main(RankGroup& group, int rank, const char* operation, const T& object) {
  const ObjectExchange exchange(group, rank, object_call<T>(operation, false), &object);
  return exchange.template of<T>(0);
}

}  // namespace detail
}  // namespace tandem::comm
