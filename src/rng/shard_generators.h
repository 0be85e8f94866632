// Random numbers of exact mode.
#pragma once

#include <cstdint>
#include <vector>

#include <c10/core/Device.h>

#include "tandem/rng/generators.h"

namespace tandem::rng {

/// The generators of the logical shards that one rank computes, each those of a rank of a launch with as many ranks as
/// there are shards, and those for what the program draws outside of any shard's work: the same on all ranks, so that
/// neither depends on how many ranks there are.
class ShardGenerators {
 public:
  /// For shards `rank`, `rank` + `ranks`, … of `each`. `current`, the rank's defaults, outlives it, and is given the
  /// generators for outside.
  ShardGenerators(std::uint64_t seed, int rank, int ranks, int each, c10::Device device, RankGenerators& current);

  /// The thread draws from those of shard `sub_step` of the rank from here on; kOutside: from those for outside.
  void use(int sub_step);
  static constexpr int kOutside = -1;

  /// Gives all of a kind of device, such as `like`, this state.
  void set_states(const at::Generator& like, const at::Tensor& state);

  std::vector<RankGenerators>& of_shards() { return of_shards_; }  ///< by sub-step
  RankGenerators& outside() { return outside_; }                   ///< of any shard's work

 private:
  RankGenerators& current_;
  RankGenerators outside_;
  std::vector<RankGenerators> of_shards_;
};

}  // namespace tandem::rng
