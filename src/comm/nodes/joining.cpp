#include "comm/nodes/joining.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>

#include "comm/nodes/fields.h"
#include "comm/nodes/sockets.h"
#include "comm/nodes/watchman.h"

namespace tandem::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kLook(20);      // how often the store is asked while somebody is missing
constexpr milliseconds kReport(1000);  // how often it is said who

std::string name_of(int node, const std::string& host) {
  return "node " + std::to_string(node) + (host.empty() ? "" : " (host " + host + ")");
}

// The same process twice has two: a thread each, in tests.
std::string unique_text(const NodeCard& card) {
  std::random_device random;
  return "process " + std::to_string(card.process) + " of host " + card.host + "\n" + std::to_string(random()) +
         std::to_string(random());
}

class Joining {
 public:
  Joining(KeyStore& store, const Nodes& nodes, const NodeCard& mine, const JoinOptions& options)
      : store_(store), nodes_(nodes), mine_(mine), options_(options), unique_(unique_text(mine)) {}

  JoinedNodes join() {
    for (;;) {
      JoinedNodes joined{find_generation(), {}};
      store_.set(joined.prefix + "card" + std::to_string(nodes_.node), to_bytes(mine_));
      try {
        if (!await_cards(joined)) continue;
        if (const std::string problem = settle(joined.cards); !problem.empty()) throw ConfigError(problem);
        // All have seen that all are there: some may have come long ago, and be no more.
        if (!await_all(joined, "ready")) continue;
        try_to_reach_others(joined);
        if (!await_all(joined, "reached")) continue;
        return joined;
      } catch (const StoreError&) {
        throw;
      } catch (const std::exception& error) {  // also what `progress` throws
        give_up(joined.prefix, error.what());
        throw;
      }
    }
  }

 private:
  std::string find_generation() {
    try {
      return open_generation();
    } catch (const StoreError& error) {
      throw EarlierStoreError(error.what());
    }
  }

  // Node 0 opens generations; the others join the newest that is not over, and only once.
  std::string open_generation() {
    const std::string key = root() + "generation";
    if (nodes_.node == 0) {
      const std::int64_t generation = store_.add(key, 1);
      store_.set(prefix(generation - 1) + "over", "node 0 has started anew");
      claim(prefix(generation));
      return prefix(generation);
    }
    for (std::string other;; pause(other.empty() ? missing_text({0}) : other)) {
      const std::int64_t generation = store_.add(key, 0);
      if (generation == 0 || store_.get(prefix(generation) + "over")) continue;
      other = claim(prefix(generation));
      if (other.empty()) return prefix(generation);
      // What is there may be the start before: a launcher's store outlives it, and that of a node 0 that is leaving
      // may still be there when this node has left.
      if (!nodes_.launcher_has_store && !store_.get(left_key(prefix(generation), nodes_.node)))
        throw CollectiveError(other);
    }
  }

  // Takes the place of this node; otherwise says who has.
  std::string claim(const std::string& prefix) {
    const std::string owner = store_.set_first(prefix + "place" + std::to_string(nodes_.node), unique_);
    if (owner == unique_) return "";
    return "two processes say that they are node " + std::to_string(nodes_.node) + " of " +
           std::to_string(nodes_.nodes) + ": this one, process " + std::to_string(mine_.process) + " of host " +
           mine_.host + ", and " + owner.substr(0, std::min<std::size_t>(owner.find('\n'), 300));
  }

  // Ends the others too, which may wait for this node, and read of it before the store goes.
  void give_up(const std::string& prefix, const std::string& why) {
    store_.set_first(failure_key(prefix), to_bytes(NodeFailure{nodes_.node, mine_.host, -1, why}));
    leave_store(store_, prefix, nodes_.node, nodes_.nodes, nodes_.node == 0 && !nodes_.launcher_has_store,
                milliseconds(1000));
  }

  // False: this generation is over.
  bool await_cards(JoinedNodes& joined) {
    joined.cards.resize(static_cast<std::size_t>(nodes_.nodes));
    std::vector<int> missing(static_cast<std::size_t>(nodes_.nodes));
    for (int node = 0; node < nodes_.nodes; ++node) missing[static_cast<std::size_t>(node)] = node;
    const auto look = [&] {
      std::erase_if(missing, [&](int node) {
        const auto bytes = store_.get(joined.prefix + "card" + std::to_string(node));
        if (bytes) joined.cards[static_cast<std::size_t>(node)] = node_card_of(*bytes, node);
        return bytes.has_value();
      });
      return missing.empty();
    };
    for (;; pause(missing_text(missing))) {
      const bool all = look();
      if (store_.get(joined.prefix + "over")) {
        if (nodes_.node != 0) return false;
        throw CollectiveError("another process has started as node 0");
      }
      if (all) return true;
      if (const auto bytes = store_.get(failure_key(joined.prefix))) {
        // Where it is about the cards, all are there by now, and this node says the same of them.
        if (look()) return true;
        throw_failure(node_failure_of(*bytes));
      }
    }
  }

  void try_to_reach_others(const JoinedNodes& joined) const {
    for (int node = 0; node < nodes_.nodes; ++node) {
      const NodeCard& card = joined.cards[static_cast<std::size_t>(node)];
      if (node == nodes_.node || card.port == 0) continue;
      const std::string problem = try_to_connect(card.address, card.port, 5000);
      if (!problem.empty())
        throw CollectiveError(name_of(nodes_.node, mine_.host) + " cannot reach " + joined.name(node) +
                              " at its address " + card.address + ": " + problem +
                              "; nodes connect to each other at any port, and at the address from which a node reaches "
                              "the head, if no network interface is given");
    }
  }

  // Waits until all have come to the same place. False: this generation is over.
  bool await_all(const JoinedNodes& joined, const std::string& place) {
    const auto key = [&](int node) { return joined.prefix + place + std::to_string(node); };
    store_.set(key(nodes_.node), "1");
    const auto began = Clock::now();
    for (int node = 0; node < nodes_.nodes; ++node)
      while (!store_.get(key(node))) {
        if (const auto bytes = store_.get(failure_key(joined.prefix))) throw_failure(node_failure_of(*bytes));
        if (nodes_.node != 0 && store_.get(joined.prefix + "over")) return false;
        if (Clock::now() - began >= nodes_.node_timeout)
          throw CollectiveError(joined.name(node) + " came, and has not been heard of for " +
                                to_text(nodes_.node_timeout) +
                                " since: it was killed, is frozen, or cannot be reached");
        std::this_thread::sleep_for(milliseconds(2));
      }
    return true;
  }

  [[noreturn]] static void throw_failure(const NodeFailure& failure) {
    throw CollectiveError(name_of(failure.node, failure.host) + ": " + failure.text);
  }

  // "waiting for node 2 of 3 (host b)"
  std::string missing_text(const std::vector<int>& missing) const {
    std::string text = missing.size() == 1 ? "waiting for node " : "waiting for nodes ";
    constexpr std::size_t kNamed = 4;
    for (std::size_t i = 0; i < missing.size() && i < kNamed; ++i)
      text += (i == 0 ? "" : ", ") + std::to_string(missing[i]) +
              (nodes_.hosts.empty() || missing.size() == 1
                   ? ""
                   : " (host " + nodes_.hosts[static_cast<std::size_t>(missing[i])] + ")");
    if (missing.size() > kNamed) text += " and " + std::to_string(missing.size() - kNamed) + " more";
    text += " of " + std::to_string(nodes_.nodes);
    if (!nodes_.hosts.empty() && missing.size() == 1)
      text += " (host " + nodes_.hosts[static_cast<std::size_t>(missing[0])] + ")";
    return text;
  }

  // Waits a moment, for what `waiting` says.
  void pause(const std::string& waiting) {
    if (options_.stop.stop_requested()) throw Cancelled("joining the other nodes was cancelled");
    const auto waited = std::chrono::duration_cast<milliseconds>(Clock::now() - began_);
    if (waited >= nodes_.join_timeout)
      throw CollectiveError("gave up after " + to_text(nodes_.join_timeout) + ": " + waiting);
    if (options_.progress && Clock::now() - reported_ >= kReport) {
      reported_ = Clock::now();
      options_.progress(waiting + ": " + to_text(waited) + " of " + to_text(nodes_.join_timeout));
    }
    std::this_thread::sleep_for(std::min(kLook, nodes_.join_timeout - waited));
  }

  std::string root() const { return "tandem/" + nodes_.run + "/"; }
  std::string prefix(std::int64_t generation) const { return root() + std::to_string(generation) + "/"; }

  KeyStore& store_;
  const Nodes& nodes_;
  const NodeCard& mine_;
  const JoinOptions& options_;
  const std::string unique_;
  const Clock::time_point began_ = Clock::now();
  Clock::time_point reported_ = began_;
};

void add_difference(std::string& problem, const std::string& text) { problem += (problem.empty() ? "" : "; ") + text; }

const NamedValue* find_value(const NodeCard& card, const std::string& name) {
  const auto found =
      std::find_if(card.values.begin(), card.values.end(), [&](const NamedValue& value) { return value.name == name; });
  return found == card.values.end() ? nullptr : &*found;
}

// What `node` has otherwise than node 0.
std::string differences(const std::vector<NodeCard>& cards, int node) {
  const NodeCard &first = cards[0], &other = cards[static_cast<std::size_t>(node)];
  const auto said = [](const NamedValue* value) { return value ? value->value : std::string("nothing"); };
  std::string text;
  const auto compare = [&](const std::string& name) {
    const std::string here = said(find_value(first, name)), there = said(find_value(other, name));
    if (here != there)
      add_difference(text, name + " is " + here + " on " + name_of(0, first.host) + " and " + there + " on " +
                               name_of(node, other.host));
  };
  for (const NamedValue& value : first.values) compare(value.name);
  for (const NamedValue& value : other.values)
    if (!find_value(first, value.name)) compare(value.name);
  return text;
}

// The address of the store's host for others, where one has reached it from outside.
std::string outside_address(const std::vector<NodeCard>& cards) {
  for (const NodeCard& card : cards)
    if (!is_loopback(card.address) && !is_loopback(card.head_address)) return card.head_address;
  return "";
}

std::string shared_gpu(const std::vector<NodeCard>& cards, std::size_t node) {
  for (std::size_t other = 0; other < node; ++other)
    for (const std::string& gpu : cards[node].gpus)
      if (cards[other].host_id == cards[node].host_id &&
          std::find(cards[other].gpus.begin(), cards[other].gpus.end(), gpu) != cards[other].gpus.end())
        return name_of(static_cast<int>(other), cards[other].host) + " and " +
               name_of(static_cast<int>(node), cards[node].host) + " would share GPU " + gpu +
               ": start one process a host, or give each GPUs of its own (CUDA_VISIBLE_DEVICES)";
  return "";
}

}  // namespace

std::string to_text(milliseconds time) {
  const auto count = time.count();
  if (count < 1000) return std::to_string(count) + " ms";
  if (count >= 120'000 && count % 60'000 == 0) return std::to_string(count / 60'000) + " min";
  return std::to_string(count / 1000) + " s";
}

std::string to_bytes(const NodeCard& card) {
  std::string bytes;
  const auto add = [&](const std::string& field) { add_field(bytes, field); };
  for (const std::string* field : {&card.host, &card.host_id, &card.address, &card.head_address}) add(*field);
  add(std::to_string(card.port));
  add(std::to_string(card.process));
  add(std::to_string(card.ranks));
  add(std::to_string(card.gpus.size()));
  for (const std::string& gpu : card.gpus) add(gpu);
  add(std::to_string(card.values.size()));
  for (const auto& [name, value] : card.values) {
    add(name);
    add(value);
  }
  return bytes;
}

NodeCard node_card_of(const std::string& bytes, int node) {
  Fields fields(bytes, node);
  NodeCard card;
  for (std::string* field : {&card.host, &card.host_id, &card.address, &card.head_address}) *field = fields.text();
  card.port = static_cast<int>(fields.number(65535));
  card.process = fields.number(std::int64_t{1} << 32);
  card.ranks = static_cast<int>(fields.number(1 << 20));
  for (auto left = fields.number(1 << 20); left > 0; --left) card.gpus.push_back(fields.text());
  for (auto left = fields.number(1 << 20); left > 0; --left) {
    std::string name = fields.text();
    card.values.push_back({std::move(name), fields.text()});
  }
  fields.end();
  return card;
}

std::string JoinedNodes::name(int node) const { return name_of(node, cards[static_cast<std::size_t>(node)].host); }

std::vector<int> JoinedNodes::ranks() const {
  std::vector<int> ranks;
  for (const NodeCard& card : cards) ranks.push_back(card.ranks);
  return ranks;
}

std::vector<std::string> JoinedNodes::names() const {
  std::vector<std::string> names;
  for (std::size_t node = 0; node < cards.size(); ++node) names.push_back(name(static_cast<int>(node)));
  return names;
}

std::string settle(std::vector<NodeCard>& cards) {
  std::string problem;
  for (std::size_t node = 1; node < cards.size(); ++node)
    if (const std::string text = differences(cards, static_cast<int>(node)); !text.empty())
      add_difference(problem, text);
  if (!problem.empty()) return "the nodes are not alike: " + problem;
  const std::string outside = outside_address(cards);
  const bool one_host =
      std::all_of(cards.begin(), cards.end(), [&](const NodeCard& card) { return card.host_id == cards[0].host_id; });
  for (std::size_t node = 0; node < cards.size(); ++node) {
    if (const std::string text = shared_gpu(cards, node); !text.empty()) return text;
    if (!is_loopback(cards[node].address)) continue;
    if (!outside.empty()) {
      cards[node].address = outside;  // it is on the host of the store
    } else if (!one_host) {
      return name_of(static_cast<int>(node), cards[node].host) + " has only the address " + cards[node].address +
             ", at which other hosts cannot reach it: give the head by a name or an address that leads to it from all";
    }
  }
  return "";
}

std::string left_key(const std::string& prefix, int node) { return prefix + "left" + std::to_string(node); }

void leave_store(KeyStore& store, const std::string& prefix, int node, int nodes, bool waits, milliseconds limit,
                 int without) {
  const auto began = Clock::now();
  store.set(left_key(prefix, node), "1");
  for (int other = 0; waits && other < nodes; ++other)
    while (other != without && !store.get(left_key(prefix, other)) && Clock::now() - began < limit)
      std::this_thread::sleep_for(milliseconds(5));
}

JoinedNodes join_nodes(KeyStore& store, const Nodes& nodes, const NodeCard& mine, const JoinOptions& options) {
  return Joining(store, nodes, mine, options).join();
}

void try_links(NodeLink& link, const JoinedNodes& joined) {
  const auto message_of = [&](int node) { return joined.prefix + std::to_string(node); };
  const std::string mine = message_of(link.node());
  const std::vector<Frame> frames = exchange(link, Channel::trial, std::as_bytes(std::span(mine)));
  for (int node = 0; node < link.nodes(); ++node) {
    const auto bytes = frames[static_cast<std::size_t>(node)].bytes();
    if (std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) != message_of(node))
      throw LinkError(node, joined.name(node) + " is of another training, or of another start of this one");
  }
}

}  // namespace tandem::comm
