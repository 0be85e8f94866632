#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace tandem_tool {

/// Whose plan to show: a loader over `length` samples that are their own indices.
struct PlanRequest {
  std::int64_t length = 0;
  std::int64_t batch_size = 1;
  int ranks = 1;
  bool drop_last = false, even_batches = true, split_batches = false;
  bool dispatch = false, iterable = false, shuffle = false, seedable_sampler = false;
  std::optional<std::uint64_t> seed;
  std::int64_t skip_batches = 0;
  std::int64_t epochs = 1;
};

/// What the library's loaders did.
struct PlanResult {
  struct Epoch {
    std::vector<std::vector<std::vector<std::int64_t>>> ranks;  ///< by rank, by step: samples
    std::int64_t remainder = -1;
    std::vector<std::int64_t> gathered;  ///< what gather_for_metrics keeps, in order
  };
  std::vector<Epoch> epochs;
  std::vector<std::optional<std::int64_t>> prepared_len;  ///< by rank; none for an iterable
};

/// Runs the library's loaders of all ranks, in turn on the calling thread. Throws tandem::Error.
PlanResult run_plan(const PlanRequest& request);

nlohmann::ordered_json to_json(const PlanResult& result);

/// Reads a request. Throws tandem::ConfigError that names the key.
PlanRequest plan_request_from_json(const nlohmann::json& json);

/// For people: a line a step, with the ranks' samples between bars.
std::string to_text(const PlanResult& result);

}  // namespace tandem_tool
