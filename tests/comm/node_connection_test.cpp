// Processes that join, reduce together and fail, as nodes on this host do.
#include "comm/nodes/connection.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <thread>

#include "comm/nodes/chain.h"
#include "comm/nodes/sockets.h"
#include "support/catch.h"
#include "support/run_program.h"

using namespace tandem;
using namespace tandem::comm;

namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

long long milliseconds_now() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// One line at a time, whoever else writes.
void say(const std::string& text) {
  const std::string line = text + "\n";
  if (write(1, line.data(), line.size()) < 0) std::abort();
}

// Stops this process for 6 s.
void freeze() {
  const pid_t self = getpid();
  if (fork() == 0) {
    sleep(6);
    kill(self, SIGCONT);
    _exit(0);
  }
  raise(SIGSTOP);
}

void do_what_was_asked(const std::string& what) {
  say("acts at " + std::to_string(milliseconds_now()));
  if (what == "throw") throw std::runtime_error("disk on fire");
  if (what == "kill") raise(SIGKILL);
  if (what == "freeze") freeze();
}

// Sums of three elements, or of so many that they go through the chain, until something is due.
void reduce_again_and_again(NodeConnection& connection, const std::string& what) {
  NodeChain chain(connection.link(), connection.joined().ranks());
  std::vector<float> values(100'000);
  const float wanted = static_cast<float>(connection.joined().cards.size());
  for (int round = 0;; ++round) {
    if (round == 30 && !what.empty()) do_what_was_asked(what);
    if (round == 60 && what == "leave") return;
    const std::int64_t length = round % 2 == 0 ? 3 : 100'000;
    std::fill(values.begin(), values.end(), 1.0f);
    const ElementRow row{values.data(), length, ElementType::float32};
    const SharedReducer::Lists lists{{&row, 1}, {&row, 1}, ReduceOp::sum};
    const SharedReducer::Lists* const mine[] = {&lists};
    chain.reduce(mine);
    for (std::int64_t i = 0; i < length; ++i)
      if (values[static_cast<std::size_t>(i)] != wanted) throw std::logic_error("a wrong sum");
    if (what.empty() && round == 60 && variable("TANDEM_TEST_LEAVES") == "1") return;
  }
}

struct Ended {
  std::string output;
  int exit_code = 0;
};

std::string this_program() { return std::filesystem::read_symlink("/proc/self/exe"); }

int free_port() { return port_of(listen_at(0)); }

// Runs `nodes` processes, of which `acting` does `what`.
std::vector<Ended> run_processes(int nodes, int acting, const std::string& what, const std::string& more = "") {
  const int port = free_port();
  std::vector<Ended> ended(static_cast<std::size_t>(nodes));
  std::vector<std::thread> threads;
  for (int node = 0; node < nodes; ++node)
    threads.emplace_back([&, node] {
      const auto result = test::run_program(
          "exec env RANK=" + std::to_string(node) + " WORLD_SIZE=" + std::to_string(nodes) +
          " MASTER_ADDR=localhost MASTER_PORT=" + std::to_string(port) +
          " OMP_NUM_THREADS=1 TORCH_CPP_LOG_LEVEL=ERROR " + more + (node == acting ? " TANDEM_TEST_DOES=" + what : "") +
          " timeout -s KILL 60 " + this_program() + " '[.node]'");
      ended[static_cast<std::size_t>(node)] = {result.output, result.exit_code};
    });
  for (std::thread& thread : threads) thread.join();
  return ended;
}

// From what the acting node did to what `node` said last.
long long milliseconds_between(const std::vector<Ended>& ended, int acting, int node) {
  const auto time_after = [](const std::string& output, const std::string& word) {
    const auto at = output.find(word);
    return at == std::string::npos ? -1 : std::stoll(output.substr(at + word.size()));
  };
  return time_after(ended[static_cast<std::size_t>(node)].output, "failed at ") -
         time_after(ended[static_cast<std::size_t>(acting)].output, "acts at ");
}

// Runs three processes of which one does `what`; each goes `silence` milliseconds without hearing of another.
void check_that_all_end(int acting, const std::string& what, const std::string& silence) {
  CAPTURE(what, acting);
  const auto ended = run_processes(3, acting, what, "TANDEM_TEST_NODE_TIMEOUT=" + silence);
  INFO("the others said so after " << milliseconds_between(ended, acting, acting == 1 ? 0 : 1) << " and "
                                   << milliseconds_between(ended, acting, acting == 2 ? 0 : 2) << " ms");
  std::string said;
  for (int node = 0; node < 3; ++node) {
    if (node == acting && what == "kill") continue;
    const auto& [output, exit_code] = ended[static_cast<std::size_t>(node)];
    INFO("node " << node << ": " << output);
    CHECK(exit_code == 0);
    CHECK_THAT(output, ContainsSubstring("ended"));
    const auto at = output.find(": node ");
    REQUIRE(at != std::string::npos);
    const std::string text = output.substr(at, output.find('\n', at) - at);
    if (what == "throw") {
      CHECK(text == ": node " + std::to_string(acting) + ": disk on fire");
    } else if (node != acting) {
      CHECK_THAT(text, ContainsSubstring("node " + std::to_string(acting) + " (host " + host_name() + ")"));
      // Node 0 has the store, so that each finds out for itself that it has gone.
      if (acting == 0) continue;
      if (said.empty()) said = text;
      CHECK(text == said);
    }
  }
}

}  // namespace

// What the processes below run; it can be started by a launcher too.
TEST_CASE("one node of several", "[.node]") {
  Nodes nodes = nodes_from_environment().value();
  if (const auto limit = variable("TANDEM_TEST_NODE_TIMEOUT"); !limit.empty())
    nodes.node_timeout = std::chrono::milliseconds(std::stoi(limit));
  nodes.join_timeout = std::chrono::seconds(30);
  NodeCard card{.ranks = 1, .values = {{"seed", variable("TANDEM_TEST_DOES") == "differ" ? "43" : "42"}}};
  const auto began = milliseconds_now();
  std::mutex mutex;  // guards the failure
  NodeFailure failure{-1, "", -1, "nothing"};
  const auto note = [&](const NodeFailure& heard) {
    const std::lock_guard lock(mutex);
    failure = heard;
  };
  std::unique_ptr<NodeConnection> connection;
  const auto tell = [&](int rank, const std::exception& error, bool consequence) {
    const NodeFailure mine{nodes.node, host_name(), rank, error.what()};
    note(connection ? connection->watchman().tell(mine, consequence) : mine);
  };
  try {
    connection = std::make_unique<NodeConnection>(nodes, card, JoinOptions{.progress = say}, note);
    say("joined in " + std::to_string(milliseconds_now() - began) + " ms at " +
        connection->joined().cards[static_cast<std::size_t>(nodes.node)].address);
    reduce_again_and_again(*connection, variable("TANDEM_TEST_DOES"));
    connection->leave();
    say("left");
    return;
  } catch (const LinkError& error) {
    tell(-1, error, true);
  } catch (const Cancelled&) {  // and so it was noted
  } catch (const std::exception& error) {
    tell(nodes.node, error, false);
  }
  {
    const std::lock_guard lock(mutex);
    say("failed at " + std::to_string(milliseconds_now()) + ": node " + std::to_string(failure.node) + ": " +
        failure.text);
  }
  if (connection) connection->watchman().leave();
  connection.reset();
  say("ended");
}

TEST_CASE("processes join, reduce together and leave") {
  for (const int nodes : {2, 3})
    for (const Ended& ended : run_processes(nodes, -1, "", "TANDEM_TEST_LEAVES=1")) {
      INFO(ended.output);
      CHECK(ended.exit_code == 0);
      CHECK_THAT(ended.output, ContainsSubstring("joined in ") && ContainsSubstring("left"));
    }
}

TEST_CASE("whatever ends one process ends all, and all say the same") {
  for (const std::string what : {"throw", "kill"})
    for (const int acting : {0, 2}) check_that_all_end(acting, what, "15000");
}

TEST_CASE("a process that is stopped ends the others, and itself when it goes on", "[.long-stopped]") {
  for (const int acting : {0, 1, 2}) check_that_all_end(acting, "freeze", "4000");
}

TEST_CASE("processes that differ say so, all the same") {
  for (const Ended& ended : run_processes(3, 1, "differ")) {
    INFO(ended.output);
    CHECK_THAT(ended.output, ContainsSubstring("the nodes are not alike: seed is 42 on node 0"));
  }
}
