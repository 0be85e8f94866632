#include "tandem/rng/generators.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <algorithm>

#include <mutex>

#include "default_generator_kernels.h"

namespace tandem::rng {
namespace {

thread_local RankGenerators* thread_generators = nullptr;

void seed_generator(at::Generator& generator, std::uint64_t seed) {
  const std::lock_guard lock(generator.mutex());
  generator.set_current_seed(seed);
}

void seed_all(RankGenerators& generators, std::uint64_t seed) {
  seed_generator(generators.cpu, seed);
  for (at::Generator& generator : generators.cuda)
    if (generator.defined()) seed_generator(generator, seed);
  if (generators.cuda_seed) generators.cuda_seed = seed;
}

// Finalizer of 32-bit MurmurHash3 (A. Appleby): a bijection, so that different ranks cannot collide.
std::uint32_t mix(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

// Finalizer of SplitMix64 (G. Steele, D. Lea, C. Flood, 2014): all bits of the key reach the low 32, which count.
std::uint64_t mix64(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

std::uint64_t combine(std::uint64_t stream, std::int64_t next) {
  return mix64(stream + 0x9e3779b97f4a7c15ull * (static_cast<std::uint64_t>(next) + 1));
}

}  // namespace

std::uint64_t rank_seed(std::uint64_t master_seed, int rank) {
  if (rank == 0) return master_seed;
  // Mixing before and after keeps neighbouring master seeds and ranks from sharing streams. The rank enters between two
  // bijections of the low 32 bits, so the ranks of one master seed all differ there.
  const auto low = static_cast<std::uint32_t>(master_seed);
  const auto high = static_cast<std::uint32_t>(master_seed >> 32);
  std::uint32_t seed = mix(mix(low ^ 0x9e3779b9u) + mix(high) + static_cast<std::uint32_t>(rank));
  // Rank 0 has the master seed: the one rank that would share it moves to where rank 0 would have been.
  if (seed == low) seed = mix(mix(low ^ 0x9e3779b9u) + mix(high));
  return seed;
}

at::Generator* RankGenerators::of_gpu(c10::Device device) {
  const auto index = static_cast<std::size_t>(std::max<int>(device.index(), 0));
  return device.is_cuda() && index < cuda.size() ? &cuda[index] : nullptr;
}

RankGenerators make_generators(std::uint64_t master_seed, int rank, c10::Device device) {
  const std::uint64_t seed = rank_seed(master_seed, rank);
  RankGenerators generators{.cpu = at::make_generator<at::CPUGeneratorImpl>(seed)};
  if (device.is_cpu()) return generators;
  generators.cuda.resize(static_cast<std::size_t>(device.index()) + 1);
  at::Generator& own = generators.cuda.back();
  own = at::globalContext().getAcceleratorHooksInterface(device.type()).getNewGenerator(device.index());
  seed_generator(own, seed);
  return generators;
}

DefaultGeneratorGuard::DefaultGeneratorGuard(RankGenerators& generators) : previous_(thread_generators) {
  register_default_generator_kernels();
  thread_generators = &generators;
  c10::impl::tls_set_dispatch_key_included(kDefaultGeneratorKey, true);
}

DefaultGeneratorGuard::~DefaultGeneratorGuard() {
  thread_generators = previous_;
  c10::impl::tls_set_dispatch_key_included(kDefaultGeneratorKey, previous_ != nullptr);
}

KeyedGenerator::KeyedGenerator(std::uint64_t seed, std::int64_t epoch, std::int64_t index)
    : stream_(combine(mix64(seed), epoch)),
      generators_{.cpu = at::make_generator<at::CPUGeneratorImpl>(combine(stream_, index)),
                  .cuda_seed = combine(stream_, index)},
      guard_(generators_) {}

void KeyedGenerator::restart(std::int64_t index) { seed_all(generators_, combine(stream_, index)); }

RankGenerators* current_generators() noexcept { return thread_generators; }

void manual_seed(std::uint64_t seed) {
  if (!thread_generators) return at::manual_seed(seed);
  seed_all(*thread_generators, seed);
}

namespace {

// LibTorch's default CPU generator, which is the thread's own on threads that have one. What draws from it without the
// dispatcher finds the process's numbers here.
class DefaultGenerator final : public at::CPUGeneratorImpl {
 public:
  explicit DefaultGenerator(const at::Tensor& state) { CPUGeneratorImpl::set_state(*state.unsafeGetTensorImpl()); }

  void set_current_seed(std::uint64_t seed) override {
    if (thread_generators)
      seed_all(*thread_generators, seed);
    else
      CPUGeneratorImpl::set_current_seed(seed);
  }
  std::uint64_t current_seed() const override {
    return thread_generators ? own().current_seed() : CPUGeneratorImpl::current_seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    thread_generators ? own().set_state(state) : CPUGeneratorImpl::set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return thread_generators ? own().get_state() : CPUGeneratorImpl::get_state();
  }

 private:
  static c10::GeneratorImpl& own() { return *thread_generators->cpu.unsafeGetGeneratorImpl(); }

  CPUGeneratorImpl* clone_impl() const override {
    auto* const copy = new CPUGeneratorImpl();
    copy->set_state(*get_state());
    return copy;
  }
};

// Puts DefaultGenerator in the place of LibTorch's. Before main, because no other thread draws yet and nobody has a
// copy of LibTorch's, which would be another generator from then on: where somebody has one all the same, it stays.
class DefaultGeneratorPlace {
 public:
  DefaultGeneratorPlace() {
    try {
      at::Generator& process = place();
      if (process.getIntrusivePtr().use_count() > 1) return;
      ours_ = at::make_generator<DefaultGenerator>(process.get_state());
      process = ours_;
    } catch (const c10::Error&) {
      // LibTorch has no seed for its own: there is no /dev/urandom. Whoever draws from it is told, and not whoever
      // loads this library.
    }
  }
  // The library may be unloaded, and with it the class.
  ~DefaultGeneratorPlace() {
    if (ours_.defined() && place() == ours_) place() = ours_.clone();
  }
  DefaultGeneratorPlace(const DefaultGeneratorPlace&) = delete;
  DefaultGeneratorPlace& operator=(const DefaultGeneratorPlace&) = delete;

 private:
  static at::Generator& place() { return const_cast<at::Generator&>(at::detail::getDefaultCPUGenerator()); }

  at::Generator ours_;
};

const DefaultGeneratorPlace default_generator_place;

}  // namespace

}  // namespace tandem::rng
