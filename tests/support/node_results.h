// What a body gives on several nodes, beside one process with as many ranks.
#pragma once

#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include <torch/nn/module.h>

#include "support/ranks.h"

namespace tandem::test {

inline const std::vector<std::vector<int>> kNodes{{1, 1}, {2, 1}, {1, 2, 1}, {2, 2}};

inline std::string bits_of(const at::Tensor& tensor) {
  const at::Tensor row = tensor.detach().contiguous();
  return {static_cast<const char*>(row.const_data_ptr()), row.nbytes()};
}

inline std::string bits_of(const torch::nn::Module& net) {
  std::string bits;
  for (const at::Tensor& tensor : net.parameters()) bits += bits_of(tensor);
  for (const at::Tensor& tensor : net.buffers()) bits += bits_of(tensor);
  return bits;
}

using Body = std::function<std::string(Accelerator&)>;

// What each rank returned on so many nodes; one: in one process.
inline std::vector<std::string> results_on(const std::vector<int>& nodes, LaunchConfig config, const Body& body) {
  const int ranks = std::accumulate(nodes.begin(), nodes.end(), 0);
  std::vector<std::string> results(static_cast<std::size_t>(ranks));
  const auto keep = [&](Accelerator& a) { results[static_cast<std::size_t>(a.rank())] = body(a); };
  config.threads_per_rank = 1;
  config.cpu = ranks;
  nodes.size() == 1 ? launch(config, keep) : launch_on_nodes(nodes, config, keep);
  return results;
}

inline void check_same_on_nodes(const LaunchConfig& config, const Body& body,
                                const std::vector<std::vector<int>>& of_nodes = kNodes) {
  for (const std::vector<int>& nodes : of_nodes) {
    CAPTURE(nodes);
    const auto alone = results_on({std::accumulate(nodes.begin(), nodes.end(), 0)}, config, body);
    CHECK_FALSE(alone[0].empty());
    CHECK((results_on(nodes, config, body) == alone));
  }
}

}  // namespace tandem::test
