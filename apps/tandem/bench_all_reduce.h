#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace tandem_tool {

struct AllReduceRequest {
  int ranks = 2;
  std::vector<std::int64_t> bytes;  ///< sizes of the float32 tensor, multiples of 4
  std::stop_token cancel;
};

/// One size, as the slowest rank saw it.
struct AllReduceTime {
  int ranks;
  std::int64_t bytes;
  double seconds;         ///< median of the calls
  double memcpy_seconds;  ///< median of copies of as many bytes on one rank, while the others sleep
};

/// All-reduces of sums in place between CPU ranks, each size beside a memcpy in the same run; checks the sums first.
/// Calls `on_result` with each size's figures as they come. Throws tandem::Error.
void measure_all_reduces(const AllReduceRequest& request, const std::function<void(const AllReduceTime&)>& on_result);

/// Reads sizes as "1K,64K,4M": bytes with an optional K, M or G (powers of 1024). Throws tandem::ConfigError that names
/// the part.
std::vector<std::int64_t> parse_sizes(const std::string& text);

nlohmann::ordered_json to_json(const AllReduceTime& result);

}  // namespace tandem_tool
