#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

/// \file
/// Default generators of their own for threads.
///
/// LibTorch has one default CPU generator a process: threads that draw from it get other numbers on every run. While a
/// DefaultGeneratorGuard lives, everything that the thread draws without naming a generator (torch::rand, dropout,
/// initialisation, samplers, …) comes from the guard's, and LibTorch's default generator by name is the guard's too
/// (torch::manual_seed, its state). Other threads see nothing of it.
namespace tandem::rng {

/// Seed of a rank's stream. Rank 0's is the master seed itself, so that one rank equals plain LibTorch after
/// torch::manual_seed(master_seed). LibTorch's CPU generator uses the low 32 bits of a seed only; these differ between
/// the ranks of one master seed.
std::uint64_t rank_seed(std::uint64_t master_seed, int rank);

/// A thread's default generators.
struct RankGenerators {
  at::Generator cpu;                            ///< for the CPU
  std::vector<at::Generator> cuda = {};         ///< by device index; undefined: see cuda_seed
  std::optional<std::uint64_t> cuda_seed = {};  ///< of those that are made when they are needed; none: the process's

  /// The one of a GPU; null where there is none yet, and for another device.
  at::Generator* of_gpu(c10::Device device);
};

/// Generators seeded with rank_seed(master_seed, rank), the CPU's and `device`'s. Ranks that share a device have one
/// each.
RankGenerators make_generators(std::uint64_t master_seed, int rank, c10::Device device = c10::kCPU);

/// Makes `generators`, which outlives it, the calling thread's defaults, and restores what was before. Guards nest.
/// Destroyed on the thread that made it.
class DefaultGeneratorGuard {
 public:
  /// Makes `generators` the defaults from here on.
  explicit DefaultGeneratorGuard(RankGenerators& generators);
  ~DefaultGeneratorGuard();
  DefaultGeneratorGuard(const DefaultGeneratorGuard&) = delete;
  DefaultGeneratorGuard& operator=(const DefaultGeneratorGuard&) = delete;

 private:
  RankGenerators* previous_;
};

/// While alive, what the calling thread draws depends on a key alone: on neither the thread nor what was drawn before.
class KeyedGenerator {
 public:
  /// Draws for item `index` of epoch `epoch` from here on.
  KeyedGenerator(std::uint64_t seed, std::int64_t epoch, std::int64_t index);

  /// Draws for item `index` from here on.
  void restart(std::int64_t index);

 private:
  std::uint64_t stream_;  // of the seed and epoch
  RankGenerators generators_;
  DefaultGeneratorGuard guard_;
};

/// The calling thread's defaults; null outside of any guard.
RankGenerators* current_generators() noexcept;

/// Seeds the calling thread's default generators, of all devices; outside of a guard the process's. torch::manual_seed
/// does the same, but in a process that had copied LibTorch's default CPU generator before this library was loaded, as
/// Python does: there it seeds the process's only.
void manual_seed(std::uint64_t seed);

}  // namespace tandem::rng
