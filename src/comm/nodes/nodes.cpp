#include "tandem/comm/nodes.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstdlib>

#include "core/word_hash.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

// Below the ports that systems give to connections, and where few services are.
constexpr int kFirstPort = 20'000, kPorts = 12'000;

int port_for(std::uint64_t job) { return kFirstPort + static_cast<int>(job % kPorts); }

// Variables by name. Empty ones count as not set: shells leave them so.
class Variables {
 public:
  explicit Variables(const VariableLookup& lookup) : lookup_(lookup) {}

  std::optional<std::string> text(const std::string& name) const {
    auto value = lookup_(name);
    if (value && value->empty()) value.reset();
    return value;
  }

  bool has(const std::string& name) const { return text(name).has_value(); }

  bool have_all(std::initializer_list<const char*> names) const {
    return std::all_of(names.begin(), names.end(), [&](const char* name) { return has(name); });
  }

  // What `name` says, a number of [least, most]; nothing where it is not set.
  std::optional<std::uint64_t> number(const std::string& name, std::uint64_t least, std::uint64_t most) const {
    const auto value = text(name);
    if (!value) return std::nullopt;
    std::uint64_t result = 0;
    const char* const end = value->data() + value->size();
    const auto [at, error] = std::from_chars(value->data(), end, result);
    if (error != std::errc() || at != end || result < least || result > most)
      throw ConfigError(name + " is '" + value->substr(0, 100) + "', and should be a number from " +
                        std::to_string(least) + " to " + std::to_string(most));
    return result;
  }

 private:
  const VariableLookup& lookup_;
};

// The names under which a launcher tells of itself.
struct Launcher {
  const char* name;
  const char* node;
  const char* nodes;
};

constexpr Launcher kTorchrun{"torchrun", "RANK", "WORLD_SIZE"};
constexpr Launcher kByHand{"by hand", "RANK", "WORLD_SIZE"};
constexpr Launcher kMpirun{"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"};
constexpr Launcher kSrun{"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"};

std::string described(const Launcher& launcher, const Nodes& nodes) {
  return std::string(launcher.node) + " " + std::to_string(nodes.node) + " of " + launcher.nodes + " " +
         std::to_string(nodes.nodes);
}

Nodes read_place(const Launcher& launcher, const Variables& variables) {
  Nodes nodes;
  nodes.started_by = launcher.name;
  nodes.node = static_cast<int>(*variables.number(launcher.node, 0, kMostNodes - 1));
  nodes.nodes = static_cast<int>(*variables.number(launcher.nodes, 1, kMostNodes));
  if (nodes.node >= nodes.nodes)
    throw ConfigError(std::string(launcher.node) + " is " + std::to_string(nodes.node) + " and " + launcher.nodes +
                      " is " + std::to_string(nodes.nodes) + ": numbers of processes go from 0 to " + launcher.nodes +
                      " - 1");
  return nodes;
}

void check_host(const std::string& what, const std::string& host) {
  const auto fits = [](unsigned char c) { return c > ' ' && c < 127 && c != '/' && c != '[' && c != ']' && c != ','; };
  if (host.empty() || host.size() > 253 || !std::all_of(host.begin(), host.end(), fits))
    throw ConfigError(what + " is '" + host.substr(0, 100) + "', and should be a host's name or address");
}

// Where MASTER_ADDR and MASTER_PORT say that the store is.
void read_head(Nodes& nodes, const Variables& variables) {
  if (const auto host = variables.text("MASTER_ADDR")) {
    check_host("MASTER_ADDR", *host);
    nodes.head = *host;
  }
  if (const auto port = variables.number("MASTER_PORT", 1, 65'535)) nodes.port = static_cast<int>(*port);
}

// A program may set RANK and WORLD_SIZE out of the launcher's own; others were left over or are for another program.
void check_agreement(const Launcher& launcher, const Nodes& nodes, const Variables& variables) {
  if (!variables.have_all({"RANK", "WORLD_SIZE"})) return;
  const Nodes other = read_place(kByHand, variables);
  if (other.node == nodes.node && other.nodes == nodes.nodes) return;
  throw ConfigError(described(launcher, nodes) + " (" + launcher.name + "), but " + described(kByHand, other) +
                    ": unset RANK and WORLD_SIZE if they are left over, or " + launcher.node + " and " +
                    launcher.nodes + " if they count");
}

std::optional<Nodes> from_torchrun(const Variables& variables) {
  if (!variables.have_all({"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}))
    return std::nullopt;
  Nodes nodes = read_place(kTorchrun, variables);
  read_head(nodes, variables);
  nodes.run = *variables.text("TORCHELASTIC_RUN_ID");
  const auto agent = variables.text("TORCHELASTIC_USE_AGENT_STORE");
  if (agent && *agent != "True" && *agent != "False")
    throw ConfigError("TORCHELASTIC_USE_AGENT_STORE is '" + agent->substr(0, 100) + "', and should be True or False");
  nodes.launcher_has_store = agent == "True";
  return nodes;
}

std::optional<Nodes> from_mpirun(const Variables& variables) {
  if (!variables.have_all({"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"})) return std::nullopt;
  Nodes nodes = read_place(kMpirun, variables);
  check_agreement(kMpirun, nodes, variables);
  if (const auto job = variables.text("PMIX_NAMESPACE")) {
    nodes.run = *job;
    WordHash hash;
    for (const char c : *job) hash.add(static_cast<unsigned char>(c));
    nodes.port = port_for(hash.value());
  }
  read_head(nodes, variables);
  if (!nodes.head.empty() || nodes.nodes == 1) return nodes;
  const auto local = variables.number("OMPI_COMM_WORLD_LOCAL_SIZE", 1, kMostNodes);
  if (local != static_cast<std::uint64_t>(nodes.nodes))
    throw ConfigError("mpirun does not tell its processes where the first of them is (" + described(kMpirun, nodes) +
                      "): give it -x MASTER_ADDR=HOST");
  nodes.head = "127.0.0.1";
  return nodes;
}

// The steps' hosts, where each has one task: the first one has task 0.
void read_step_hosts(Nodes& nodes, const Variables& variables) {
  const std::vector<std::string> hosts = hosts_of(*variables.text("SLURM_STEP_NODELIST"));
  const auto count = variables.number("SLURM_STEP_NUM_NODES", 1, 65'536);
  if (count && *count != hosts.size())
    throw ConfigError("SLURM_STEP_NODELIST has " + std::to_string(hosts.size()) +
                      " hosts, and SLURM_STEP_NUM_NODES is " + std::to_string(*count));
  if (hosts.size() == static_cast<std::size_t>(nodes.nodes)) nodes.hosts = hosts;
  if (nodes.head.empty() && variables.text("SLURM_DISTRIBUTION").value_or("").starts_with("arbitrary"))
    throw ConfigError(
        "with SLURM_DISTRIBUTION arbitrary the first host need not have task 0: set MASTER_ADDR to the one "
        "that has");
  if (nodes.head.empty()) nodes.head = hosts.front();
}

std::optional<Nodes> from_srun(const Variables& variables) {
  if (!variables.have_all({"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"}))
    return std::nullopt;
  Nodes nodes = read_place(kSrun, variables);
  check_agreement(kSrun, nodes, variables);
  const std::uint64_t job = *variables.number("SLURM_JOB_ID", 0, ~std::uint32_t{0});
  const std::uint64_t step = variables.number("SLURM_STEP_ID", 0, ~std::uint32_t{0}).value_or(0);
  nodes.run = std::to_string(job) + "." + std::to_string(step);
  nodes.port = port_for(job * 7 + step);
  read_head(nodes, variables);
  read_step_hosts(nodes, variables);
  return nodes;
}

std::optional<Nodes> by_hand(const Variables& variables) {
  if (!variables.have_all({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})) return std::nullopt;
  Nodes nodes = read_place(kByHand, variables);
  read_head(nodes, variables);
  return nodes;
}

// What is there, but not enough of it.
std::string incomplete(const Variables& variables) {
  std::string found;
  for (const char* name : {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS",
                           "OMPI_COMM_WORLD_RANK"})
    if (variables.has(name)) found += (found.empty() ? "" : ", ") + std::string(name);
  if (found.empty()) return "no launcher's variables are set";
  return found + " alone " + (found.find(',') == std::string::npos ? "is" : "are") + " not what a launcher sets";
}

}  // namespace

void check(const Nodes& nodes) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw ConfigError(what);
  };
  require(nodes.nodes >= 1 && nodes.nodes <= kMostNodes,
          std::to_string(nodes.nodes) + " nodes: give 1 to " + std::to_string(kMostNodes));
  require(nodes.node >= 0 && nodes.node < nodes.nodes, "node " + std::to_string(nodes.node) + " of " +
                                                           std::to_string(nodes.nodes) + ": give 0 to " +
                                                           std::to_string(nodes.nodes - 1));
  if (nodes.nodes == 1) return;
  check_host("the head of the nodes", nodes.head);
  require(nodes.port >= 1 && nodes.port <= 65'535, "port " + std::to_string(nodes.port) + ": give 1 to 65535");
  require(nodes.join_timeout.count() > 0 && nodes.node_timeout.count() > 0, "the nodes' timeouts have to be positive");
  require(nodes.hosts.empty() || nodes.hosts.size() == static_cast<std::size_t>(nodes.nodes),
          "there are " + std::to_string(nodes.hosts.size()) + " hosts for " + std::to_string(nodes.nodes) + " nodes");
}

FoundNodes find_nodes(const VariableLookup& lookup) {
  const Variables variables(lookup);
  // From the innermost: what torchrun or mpirun starts within a step of Slurm's sees all three's.
  const std::array<std::pair<const Launcher*, std::optional<Nodes> (*)(const Variables&)>, 4> launchers{
      {{&kTorchrun, from_torchrun}, {&kMpirun, from_mpirun}, {&kSrun, from_srun}, {&kByHand, by_hand}}};
  for (const auto& [launcher, read] : launchers) {
    std::optional<Nodes> nodes = read(variables);
    if (!nodes) continue;
    std::string why = std::string(launcher->name) + ": " + described(*launcher, *nodes);
    if (nodes->nodes == 1) return {std::nullopt, why};
    if (variables.has("GLOO_SOCKET_IFNAME")) nodes->network_interface = *variables.text("GLOO_SOCKET_IFNAME");
    check(*nodes);
    why += ", the store on " + nodes->head + " port " + std::to_string(nodes->port);
    return {std::move(nodes), why};
  }
  return {std::nullopt, incomplete(variables)};
}

std::optional<Nodes> nodes_from_environment() {
  return find_nodes([](const std::string& name) -> std::optional<std::string> {
           const char* value = std::getenv(name.c_str());
           return value ? std::optional<std::string>(value) : std::nullopt;
         })
      .nodes;
}

}  // namespace tandem
