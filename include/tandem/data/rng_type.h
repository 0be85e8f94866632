#pragma once

namespace tandem::data {

/// A kind of random generator.
enum class RngType {
  generator,  ///< a loader's own, which draws its order: always the same on all ranks
  cpu,        ///< the ranks' default CPU generators
  cuda        ///< the ranks' default generators of their GPU
};

}  // namespace tandem::data
