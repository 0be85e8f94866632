// Trainings with samplers of the program's own, saved and resumed through checkpoints.
#include <filesystem>

#include "support/index_data.h"
#include "support/samplers.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr std::int64_t kSamples = 24;

struct SampledRun {
  std::vector<Batch> batches;  // of all ranks together
  std::vector<double> drawn;   // by rank 0's training
};

data::DataLoaderOptions options_of(const SamplerKind& kind, int ranks) {
  data::DataLoaderOptions options = kind.options(kSamples);
  if (!kind.batches) options.batch_size = 8 / ranks;
  return options;
}

// Three epochs of three steps; after `stop_after` of all steps the state is saved and the run ends.
SampledRun run_of(const SamplerKind& kind, int ranks, std::int64_t stop_after, const std::string& save_to,
                  const std::string& load_from, bool background = false) {
  return on_ranks<SampledRun>(ranks, [&](Accelerator& accelerator) {
    SampledRun run;
    auto loader =
        accelerator.prepare(data::DataLoader(Indices(static_cast<std::size_t>(kSamples)), options_of(kind, ranks)));
    if (!load_from.empty()) accelerator.load_state(load_from);
    while (loader.epoch() < 3)
      for (auto& batch : loader) {
        run.batches.push_back(list(accelerator.gather(batch)));
        run.drawn.push_back(at::rand({}).item<double>());
        if (static_cast<std::int64_t>(run.batches.size()) != stop_after) continue;
        accelerator.save_state(save_to, {.background = background});
        return run;
      }
    return run;
  })[0];
}

template <class Value>
std::vector<Value> from(const std::vector<Value>& all, std::int64_t begin) {
  return {all.begin() + begin, all.end()};
}

// Its state is an order of many samples.
class LargeTorchSampler : public HalfSavedTorchSampler {
 public:
  explicit LargeTorchSampler(std::size_t size) : HalfSavedTorchSampler(size), ballast_(at::arange(100'000)) {}
  void save(torch::serialize::OutputArchive& archive) const override {
    HalfSavedTorchSampler::save(archive);
    archive.write("ballast", ballast_, true);
  }
  void load(torch::serialize::InputArchive& archive) override {
    HalfSavedTorchSampler::load(archive);
    archive.read("ballast", ballast_, true);
  }

 private:
  at::Tensor ballast_;
};

}  // namespace

TEST_CASE("a training goes on from a checkpoint with the same samples and numbers, whatever sampler it has") {
  auto kinds = sampler_kinds();
  kinds.push_back(torch_kind<LargeTorchSampler>("torch::data, much to save"));
  for (const SamplerKind& kind : kinds)
    for (const std::int64_t stop_after : {1, 3, 5, 6}) {
      INFO(kind.name << " after " << stop_after);
      const TempDir dir;
      const SampledRun whole = run_of(kind, 4, -1, {}, {});
      run_of(kind, 4, stop_after, dir / "state", {}, stop_after == 5);
      const SampledRun rest = run_of(kind, 4, -1, {}, dir / "state");
      CHECK(rest.batches == from(whole.batches, stop_after));
      CHECK(rest.drawn == from(whole.drawn, stop_after));
      if (!kind.batches) CHECK(run_of(kind, 2, -1, {}, dir / "state").batches == from(whole.batches, stop_after));
    }
}

TEST_CASE("what a sampler tells of itself comes back in its own type and shape, and lies in a file of its own") {
  struct Told final : EngineSampler {
    at::Tensor given = at::arange(6, at::kDouble).view({2, 3});
    at::Tensor state() const override { return given; }
    void set_state(const at::Tensor& state) override {
      if (!at::equal(state, at::arange(6, at::kDouble).view({2, 3}))) throw std::logic_error("another state");
      given = state.clone();
    }
  };
  const TempDir dir;
  const auto told = [] { return data::DataLoaderOptions{.sampler = std::make_shared<Told>()}; };
  run_ranks(2, [&](Accelerator& accelerator) {
    auto first = accelerator.prepare(data::DataLoader(Indices(4), {.shuffle = true}));
    auto second = accelerator.prepare(data::DataLoader(Indices(4), told()));
    accelerator.save_state(dir / "state");
  });
  CHECK_FALSE(std::filesystem::exists(dir / "state/sampler.bin"));
  CHECK(std::filesystem::exists(dir / "state/sampler_1.bin"));
  CHECK_NOTHROW(run_ranks(2, [&](Accelerator& accelerator) {
    auto first = accelerator.prepare(data::DataLoader(Indices(4), {.shuffle = true}));
    auto second = accelerator.prepare(data::DataLoader(Indices(4), told()));
    accelerator.load_state(dir / "state");
    one_epoch(second);
  }));
}
