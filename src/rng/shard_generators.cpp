#include "rng/shard_generators.h"

namespace tandem::rng {

ShardGenerators::ShardGenerators(std::uint64_t seed, int rank, int ranks, int each, c10::Device device,
                                 RankGenerators& current)
    : current_(current), outside_(make_generators(seed, 0, device)) {
  for (int i = 0; i < each; ++i) of_shards_.push_back(make_generators(seed, rank + i * ranks, device));
  use(kOutside);
}

// Generators are handles: their states stay with them.
void ShardGenerators::use(int sub_step) {
  current_ = sub_step == kOutside ? outside_ : of_shards_[static_cast<std::size_t>(sub_step)];
}

void ShardGenerators::set_states(const at::Generator& like, const at::Tensor& state) {
  const auto set = [&](at::Generator& generator) {
    if (generator.defined() && generator.device() == like.device()) generator.set_state(state);
  };
  const auto set_all = [&](RankGenerators& all) {
    set(all.cpu);
    for (at::Generator& generator : all.cuda) set(generator);
  };
  set_all(outside_);
  for (RankGenerators& shard : of_shards_) set_all(shard);
}

}  // namespace tandem::rng
