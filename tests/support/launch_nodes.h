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

// What each node's launch threw, by node, which have these configurations.
inline std::vector<std::exception_ptr> try_to_launch_nodes(std::vector<LaunchConfig> of_nodes,
                                                           const std::function<void(Accelerator&)>& body) {
  const int port = comm::port_of(comm::listen_at(0));
  std::vector<std::exception_ptr> errors(of_nodes.size());
  std::vector<std::thread> threads;
  for (std::size_t node = 0; node < of_nodes.size(); ++node)
    threads.emplace_back([&, node] {
      LaunchConfig& mine = of_nodes[node];
      mine.nodes = Nodes{.node = static_cast<int>(node),
                         .nodes = static_cast<int>(of_nodes.size()),
                         .head = "127.0.0.1",
                         .port = port};
      try {
        launch(mine, body);
      } catch (...) {
        errors[node] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

// With so many CPU ranks each.
inline std::vector<std::exception_ptr> try_to_launch_on_nodes(const std::vector<int>& ranks_of_nodes,
                                                              LaunchConfig config,
                                                              const std::function<void(Accelerator&)>& body) {
  const int ranks = std::accumulate(ranks_of_nodes.begin(), ranks_of_nodes.end(), 0);
  if (config.threads_per_rank == 0)  // as in one process
    config.threads_per_rank = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks);
  std::vector<LaunchConfig> of_nodes(ranks_of_nodes.size(), config);
  for (std::size_t node = 0; node < of_nodes.size(); ++node) of_nodes[node].cpu = ranks_of_nodes[node];
  return try_to_launch_nodes(std::move(of_nodes), body);
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
inline std::vector<int> nodes_of_test(int ranks) {
  const char* const asked = std::getenv("TANDEM_TEST_NODES");
  const int nodes = asked ? std::atoi(asked) : 1;
  if (nodes < 2 || ranks < nodes) return {};
  std::vector<int> ranks_of_nodes(static_cast<std::size_t>(nodes), 1);
  ranks_of_nodes.back() += ranks - nodes;
  return ranks_of_nodes;
}

}  // namespace tandem::test
