// What nodes a, b, c and d tell of themselves when they join.
#pragma once

#include <string>
#include <vector>

#include "comm/nodes/joining.h"

namespace tandem::test {

using comm::NodeCard;

inline const char* const kHosts[] = {"a", "b", "c", "d"};

inline NodeCard card_of(int node) {
  const std::string host = kHosts[node];
  return {.host = host,
          .host_id = "id of " + host,
          .process = 100 + node,
          .address = "10.0.0." + std::to_string(node + 1),
          .head_address = "10.0.0.1",
          .ranks = node + 1,
          .values = {{"Tandem", "0.9"}, {"LibTorch", "2.11.0"}, {"seed", "42"}}};
}

inline std::vector<NodeCard> cards_of(int nodes) {
  std::vector<NodeCard> cards;
  for (int node = 0; node < nodes; ++node) cards.push_back(card_of(node));
  return cards;
}

inline comm::JoinedNodes joined_of(int nodes) { return {"t/1/", cards_of(nodes)}; }

}  // namespace tandem::test
