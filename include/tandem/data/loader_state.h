#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem::data {

/// Epochs that a sampler was asked for one after another, alike.
struct DrawnEpochs {
  std::int64_t first = 0;   ///< number of the first
  std::int64_t count = 1;   ///< how many
  std::int64_t stride = 0;  ///< from one number to the next
  bool exhausted = false;   ///< each was used to its end

  bool operator==(const DrawnEpochs&) const = default;  ///< all alike
};

/// How a sampler of the program's own came to the order that it gave last.
struct SamplerState {
  std::uint64_t seed = 0;            ///< of its default generators
  std::vector<DrawnEpochs> drawn{};  ///< every epoch that it was asked for
  std::uint64_t order = 0;           ///< a fingerprint of the last one; 0: not known
  bool running = false;              ///< the last one goes on; otherwise the next one is to begin
};

/// Where a loader stands: enough to go on with the very next batch, also on another number of ranks with the same
/// global batch.
struct LoaderState {
  std::int64_t epoch = 0;              ///< that is running, or begins next
  std::int64_t step = 0;               ///< steps of it that were handed out
  std::int64_t global_batch_size = 0;  ///< 0: batches of different sizes
  /// The sampler's state before it drew the epoch that is running, or was drawn last (of Tandem's own samplers: before
  /// the next one, where none is running); undefined: it has none.
  at::Tensor generator = {};
  std::optional<SamplerState> sampler = {};  ///< of one that is not Tandem's own
};

}  // namespace tandem::data
