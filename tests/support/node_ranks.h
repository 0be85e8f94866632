// The ranks of several nodes in one process: each node with its own group of ranks, over links in memory.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/nodes/memory_link.h"
#include "comm/nodes/reduction_thread.h"
#include "comm/rank_group.h"

namespace tandem::test {

// Runs `body` on all ranks of nodes with so many each, and returns why each rank's node was ended, by rank; empty where
// it ended well. A node that fails goes, as its links do, when its ranks have ended.
inline std::vector<std::string> run_on_nodes(const std::vector<int>& ranks_of_nodes,
                                             const std::function<void(comm::RankGroup&, int)>& body) {
  comm::MemoryNetwork network(static_cast<int>(ranks_of_nodes.size()));
  std::vector<std::vector<std::string>> errors(ranks_of_nodes.size());
  std::vector<std::unique_ptr<comm::NodeLink>> links;
  for (std::size_t node = 0; node < ranks_of_nodes.size(); ++node)
    links.push_back(network.link(static_cast<int>(node)));
  const auto run_node = [&](std::size_t node) {
    const std::unique_ptr<comm::NodeLink> link = std::move(links[node]);
    CancelToken token;
    comm::NodeExchange nodes(*link, ranks_of_nodes);
    {
      comm::RankGroup group(nodes, token);
      std::optional<comm::ReductionThread> reductions;
      if (nodes.place().nodes > 1) reductions.emplace(nodes, group.posted(), token);
      std::vector<std::thread> ranks;
      for (int i = 0; i < ranks_of_nodes[node]; ++i)
        ranks.emplace_back([&, rank = nodes.place().first_rank + i] {
          try {
            body(group, rank);
            group.depart(rank);
          } catch (...) {
            token.cancel(std::current_exception(), rank);
          }
        });
      for (std::thread& rank : ranks) rank.join();
    }
    std::string text;
    try {
      if (token.cancelled()) std::rethrow_exception(token.reason());
      link->finish();
    } catch (const std::exception& error) {
      text = error.what();
    }
    errors[node].assign(static_cast<std::size_t>(ranks_of_nodes[node]), text);
  };
  std::vector<std::thread> threads;
  for (std::size_t node = 0; node < ranks_of_nodes.size(); ++node) threads.emplace_back(run_node, node);
  for (std::thread& thread : threads) thread.join();
  std::vector<std::string> of_ranks;
  for (const auto& of_node : errors) of_ranks.insert(of_ranks.end(), of_node.begin(), of_node.end());
  return of_ranks;
}

// What run_on_nodes returns when all is well.
inline std::vector<std::string> no_errors(const std::vector<int>& ranks_of_nodes) {
  std::size_t ranks = 0;
  for (const int count : ranks_of_nodes) ranks += static_cast<std::size_t>(count);
  return std::vector<std::string>(ranks);
}

}  // namespace tandem::test
