// A launch over several nodes, which are threads of one process here, over real links.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "comm/nodes/sockets.h"
#include "tandem/tandem.h"

namespace tandem::test {

// What each node's launch threw, by node.
inline std::vector<std::exception_ptr> try_to_launch_on_nodes(const std::vector<int>& ranks_of_nodes,
                                                              LaunchConfig config,
                                                              const std::function<void(Accelerator&)>& body) {
  const int ranks = std::accumulate(ranks_of_nodes.begin(), ranks_of_nodes.end(), 0);
  const int nodes = static_cast<int>(ranks_of_nodes.size());
  if (config.threads_per_rank == 0)  // as in one process
    config.threads_per_rank = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks);
  const int port = comm::port_of(comm::listen_at(0));
  std::vector<std::exception_ptr> errors(ranks_of_nodes.size());
  std::vector<std::thread> threads;
  for (int node = 0; node < nodes; ++node)
    threads.emplace_back([&, node] {
      LaunchConfig mine = config;
      mine.cpu = ranks_of_nodes[static_cast<std::size_t>(node)];
      mine.nodes = Nodes{.node = node, .nodes = nodes, .head = "127.0.0.1", .port = port};
      try {
        launch(mine, body);
      } catch (...) {
        errors[static_cast<std::size_t>(node)] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

// The text of an exception; empty for none.
inline std::string text_of_error(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

// Throws what the node says on which it went wrong.
inline void launch_on_nodes(const std::vector<int>& ranks_of_nodes, const LaunchConfig& config,
                            const std::function<void(Accelerator&)>& body) {
  const auto errors = try_to_launch_on_nodes(ranks_of_nodes, config, body);
  for (const auto& error : errors)
    if (error && text_of_error(error).find(" (host ") == std::string::npos) std::rethrow_exception(error);
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
}

// So many ranks on TANDEM_TEST_NODES nodes, which the tests of one process can be run on too; empty: on one.
inline std::vector<int> nodes_of_test(int ranks, const LaunchConfig& config) {
  const char* const asked = std::getenv("TANDEM_TEST_NODES");
  const int nodes = asked ? std::atoi(asked) : 1;
  const bool is_refused = config.sharding == Sharding::optimizer;
  if (nodes < 2 || ranks < nodes || is_refused) return {};
  std::vector<int> ranks_of_nodes(static_cast<std::size_t>(nodes), 1);
  ranks_of_nodes.back() += ranks - nodes;
  return ranks_of_nodes;
}

}  // namespace tandem::test
