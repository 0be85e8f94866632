#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tandem {

/// One process's place among the processes, called nodes, of a training on several machines.
struct Nodes {
  int node = 0;   ///< this process, from 0
  int nodes = 1;  ///< how many there are
  /// Name or address of the host on which node 0 runs; with `launcher_has_store` of the one that has the store.
  std::string head{};
  int port = 29500;  ///< of the store there
  /// The launcher (torchrun's agent) has the store, which outlives restarts; otherwise node 0 has it.
  bool launcher_has_store = false;
  std::string started_by{};          ///< for messages, such as "torchrun"
  std::string run{};                 ///< what the launcher calls this training; empty: nothing
  std::vector<std::string> hosts{};  ///< of the nodes, for messages; empty where the launcher does not tell
  std::string network_interface{};   ///< to reach the others by, such as "eth0"; empty: the one that leads to `head`
  std::chrono::milliseconds join_timeout = std::chrono::minutes(10);  ///< longest wait for all nodes to come
  std::chrono::milliseconds node_timeout = std::chrono::seconds(15);  ///< longest silence of a node
  /// Hears about once a second, on the launching thread, for whom it waits while nodes come: "waiting for node 2 of 3
  /// (host b): 40 s of 10 min".
  std::function<void(const std::string&)> on_waiting{};
};

/// Most nodes of a training.
constexpr int kMostNodes = 4096;

/// Throws ConfigError when `nodes` is no place among nodes: a number out of range, no head, a port that is none, a
/// timeout that is not positive.
void check(const Nodes& nodes);

/// Gives an environment variable's value; nothing where it is not set.
using VariableLookup = std::function<std::optional<std::string>(const std::string& name)>;

/// What a launcher's variables say.
struct FoundNodes {
  std::optional<Nodes> nodes;  ///< nothing: a training of one process
  std::string why;             ///< in words, "torchrun: RANK 1 of WORLD_SIZE 2, …"
};

/// Looks whether this process was started as one of several, by torchrun, mpirun (Open MPI), srun (Slurm), or by hand
/// with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A launcher counts only when its variables are complete, so that
/// what is left over in a shell does not turn a plain run into one of several. Calls nothing but `lookup`.
///
/// Throws ConfigError that names the variables: when values are no numbers or contradict each other, and when mpirun or
/// srun has started several processes but does not tell where node 0 is.
FoundNodes find_nodes(const VariableLookup& lookup);

/// What find_nodes finds in the environment of this process: `LaunchConfig`s of one process and of several are made by
/// one program this way.
std::optional<Nodes> nodes_from_environment();

/// The hosts of a list as Slurm writes it: "n[1-2,05],m3" are n1, n2, n05 and m3. Several brackets in a name stand for
/// all combinations. Throws ConfigError quoting `list` when it is none, or has more than 65,536 hosts.
std::vector<std::string> hosts_of(std::string_view list);

}  // namespace tandem
