// Runs test bodies on ranks.
#pragma once

#include <functional>
#include <optional>

#include "support/catch.h"
#include "tandem/tandem.h"

namespace tandem::test {

/// Runs `body` on `ranks` CPU ranks.
inline void run_ranks(int ranks, const std::function<void(Accelerator&)>& body, LaunchConfig config = {}) {
  config.cpu = ranks;
  launch(config, body);
}

/// The same for a body that must fail: returns the RankError.
inline RankError run_ranks_expecting_error(int ranks, const std::function<void(Accelerator&)>& body,
                                           LaunchConfig config = {}) {
  try {
    run_ranks(ranks, body, config);
  } catch (const RankError& error) {
    return error;
  }
  FAIL("the launch should have failed");
  throw;  // never reached
}

/// Runs `body(accelerator)` and returns what each rank's call returned, by rank. (Catch2's assertions are not
/// thread-safe everywhere: bodies compute, the test checks.)
template <class Result>
std::vector<Result> on_ranks(int ranks, const std::function<Result(Accelerator&)>& body, LaunchConfig config = {}) {
  std::vector<std::optional<Result>> results(static_cast<std::size_t>(ranks));
  run_ranks(
      ranks, [&](Accelerator& a) { results[static_cast<std::size_t>(a.rank())].emplace(body(a)); }, config);
  std::vector<Result> values;
  for (auto& result : results) values.push_back(std::move(*result));
  return values;
}

}  // namespace tandem::test
