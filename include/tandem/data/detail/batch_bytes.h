#pragma once

#include <concepts>
#include <string>
#include <string_view>

#include "tandem/comm/object_bytes.h"
#include "tandem/data/detail/any_batch.h"

namespace tandem::data::detail {

/// How batches of a type go to ranks of other machines; null members: they cannot.
struct BatchBytes {
  void (*add)(std::string& bytes, AnyBatch& batch) = nullptr;  ///< appends a batch
  AnyBatch (*take)(std::string_view bytes) = nullptr;          ///< throws CollectiveError when it is none
};

/// Those of `Batch`.
template <class Batch>
BatchBytes bytes_of_batch() {
  if constexpr (comm::has_bytes<Batch> && std::default_initializable<Batch>)
    return {[](std::string& bytes, AnyBatch& batch) { comm::detail::Bytes<Batch>::add(bytes, batch.as<Batch>()); },
            [](std::string_view bytes) {
              Batch batch;
              comm::unpack(bytes, batch);
              return AnyBatch::of(std::move(batch));
            }};
  else
    return {};
}

}  // namespace tandem::data::detail
