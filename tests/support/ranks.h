// Runs test bodies on ranks.
#pragma once

#include <functional>
#include <optional>

#include "support/catch.h"
#include "support/launch_nodes.h"
#include "tandem/tandem.h"

namespace tandem::test {

/// Runs `body` on `ranks` CPU ranks: of one process, unless TANDEM_TEST_NODES says otherwise.
inline void run_ranks(int ranks, LaunchConfig config, const std::function<void(Accelerator&)>& body) {
  if (const auto nodes = nodes_of_test(ranks); !nodes.empty()) return launch_on_nodes(nodes, config, body);
  config.cpu = ranks;
  launch(config, body);
}

inline void run_ranks(int ranks, const std::function<void(Accelerator&)>& body) { run_ranks(ranks, {}, body); }

/// Runs a `body` that must fail on `ranks` CPU ranks, and returns the launch's error.
inline RankError run_ranks_expecting_error(int ranks, const LaunchConfig& config,
                                           const std::function<void(Accelerator&)>& body) {
  try {
    run_ranks(ranks, config, body);
  } catch (const RankError& error) {
    return error;
  }
  FAIL("the launch should have failed");
  throw;  // never reached
}

inline RankError run_ranks_expecting_error(int ranks, const std::function<void(Accelerator&)>& body) {
  return run_ranks_expecting_error(ranks, {}, body);
}

/// Runs `body` on `ranks` CPU ranks and returns what each rank's call returned, by rank. (Catch2's assertions are not
/// thread-safe everywhere: bodies compute, the test checks.)
template <class Result>
std::vector<Result> on_ranks(int ranks, const LaunchConfig& config, const std::function<Result(Accelerator&)>& body) {
  std::vector<std::optional<Result>> results(static_cast<std::size_t>(ranks));
  run_ranks(ranks, config, [&](Accelerator& a) { results[static_cast<std::size_t>(a.rank())].emplace(body(a)); });
  std::vector<Result> values;
  for (auto& result : results) values.push_back(std::move(*result));
  return values;
}

template <class Result>
std::vector<Result> on_ranks(int ranks, const std::function<Result(Accelerator&)>& body) {
  return on_ranks<Result>(ranks, {}, body);
}

}  // namespace tandem::test
