#pragma once

#include <cstdint>
#include <stop_token>
#include <vector>

namespace measure {

struct DispatchRequest {
  std::vector<std::int64_t> shape = {784};  ///< of a sample
  std::int64_t batch_size = 64;             ///< samples of a rank's batch
  std::int64_t batches = 50'000;            ///< of a rank
  int ranks = 2;
  std::stop_token cancel{};
};

struct DispatchRate {
  double batches_per_second = 0;  ///< that the ranks get together
  bool copied = false;            ///< a batch was no view of the data set's memory
};

/// Dispatch to CPU ranks of batches that are ready in memory. Throws tandem::Error.
DispatchRate measure_dispatch(const DispatchRequest& request);

}  // namespace measure
