#include "tandem/runtime/launch_config.h"

#include <algorithm>
#include <bit>

#include <torch/version.h>

#include "backend/backend.h"
#include "comm/nodes/chain.h"
#include "runtime/check_config.h"
#include "runtime/launched_node.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

constexpr int kMostRanks = 1024;
constexpr int kMostThreads = 1024;  // of a rank: OpenMP ends the process when the system has no more

void require(bool holds, const std::string& otherwise) {
  if (!holds) throw ConfigError(otherwise);
}

std::vector<c10::Device> gpu_devices(const Backend& backend, const std::vector<int>& indices) {
  const int available = backend.device_count();
  std::vector<c10::Device> devices;
  for (int index : indices) {
    require(index >= 0 && index < available, "device " + std::to_string(index) + " does not exist; this machine has " +
                                                 std::to_string(available) + " GPUs, numbered from 0");
    devices.push_back(backend.device(index));
  }
  return devices;
}

bool is_power_of_two(int number) { return number > 0 && std::has_single_bit(static_cast<unsigned>(number)); }

void check_logical_ranks(int ranks) {
  require(is_power_of_two(ranks) && ranks <= kMostRanks, "exact.logical_ranks " + std::to_string(ranks) +
                                                             " is no power of two from 1 to " +
                                                             std::to_string(kMostRanks) + "; use 8, for example");
}

// The most ranks that exact mode can have of so many.
int fitting_ranks(int ranks, const LaunchConfig& config) {
  if (!config.exact) return ranks;
  const int most = std::min(ranks, config.exact->logical_ranks);
  return static_cast<int>(std::bit_floor(static_cast<unsigned>(std::max(most, 1))));
}

void choose_gpus(PartialState& state, const LaunchConfig& config) {
  if (config.gpus) require(*config.gpus >= 1, "gpus " + std::to_string(*config.gpus) + " is too small; use 1 or more");
  state.backend = config.backend ? config.backend : gpu_backend();
  std::vector<int> indices = config.devices;
  if (indices.empty()) {
    const int available = state.backend->device_count();
    const int wanted = config.gpus.value_or(fitting_ranks(available, config));
    require(wanted <= available,
            "gpus " + std::to_string(wanted) + ", but this machine has " + std::to_string(available));
    for (int index = 0; index < wanted; ++index) indices.push_back(index);
  }
  state.devices = gpu_devices(*state.backend, indices);
}

void choose_cpu(PartialState& state, int ranks) {
  require(ranks >= 1 && ranks <= kMostRanks,
          "cpu " + std::to_string(ranks) + " is out of range; use 1 to " + std::to_string(kMostRanks) + " ranks");
  state.backend = cpu_backend();
  for (int rank = 0; rank < ranks; ++rank) state.devices.push_back(state.backend->device(rank));
}

}  // namespace

int PartialState::first_rank() const { return ranks_of_nodes.empty() ? 0 : comm::first_rank_of(ranks_of_nodes, node); }

int PartialState::world_size() const {
  return ranks_of_nodes.empty() ? local_ranks()
                                : comm::first_rank_of(ranks_of_nodes, static_cast<int>(ranks_of_nodes.size()));
}

bool spans_nodes(const LaunchConfig& config) { return config.nodes && config.nodes->nodes > 1; }

void apply_exact(AcceleratorState& state) {
  if (!state.config.exact) return;
  const bool knows_ranks = !spans_nodes(state.config) || !state.ranks_of_nodes.empty();
  const int ranks = state.world_size(), logical = state.config.exact->logical_ranks;
  require(!knows_ranks || logical % ranks == 0, std::to_string(ranks) + " ranks do not divide the " +
                                                    std::to_string(logical) + " logical ranks of exact mode; use " +
                                                    std::to_string(fitting_ranks(ranks, state.config)) + " ranks");
  state.config.tf32 = state.config.tf32.value_or(false);
  if (state.config.threads_per_rank == 0) state.config.threads_per_rank = 1;  // cores / ranks depends on the ranks
}

void check_config(const LaunchConfig& config) {
  const int ways = (config.gpus ? 1 : 0) + (config.devices.empty() ? 0 : 1) + (config.cpu ? 1 : 0);
  require(ways <= 1, "gpus, devices and cpu exclude each other; give one of them");
  require(config.devices.size() <= kMostRanks, std::to_string(config.devices.size()) + " devices; use up to " +
                                                   std::to_string(kMostRanks) + ", which is a rank each");
  require(config.threads_per_rank >= 0 && config.threads_per_rank <= kMostThreads,
          "threads_per_rank " + std::to_string(config.threads_per_rank) + " is out of range; use 1 to " +
              std::to_string(kMostThreads) + ", or 0 for cores / ranks");
  require(config.gradient_accumulation_steps >= 1, "gradient_accumulation_steps " +
                                                       std::to_string(config.gradient_accumulation_steps) +
                                                       " is too small; use 1 or more");
  require(config.scheduler_steps_per_update >= 1, "scheduler_steps_per_update " +
                                                      std::to_string(config.scheduler_steps_per_update) +
                                                      " is too small; use 1 or more");
  if (config.exact) check_logical_ranks(config.exact->logical_ranks);
  require(config.timeout.count() > 0, "timeout must be positive");
  if (spans_nodes(config)) check(*config.nodes);
  const auto [first, last] = config.nvtx_capture;
  require(first >= 0 && last >= 0 && (last == 0 || first <= last),
          "nvtx_capture from " + std::to_string(first) + " to " + std::to_string(last) +
              " is no range of updates; they are counted from 1, and a last one of 0 is none");
  optim::GradScaler::check(config.grad_scaler);
}

int default_cpu_ranks() { return std::min(cpu_backend()->device_count(), 8); }

AcceleratorState examine(const LaunchConfig& config) {
  check_config(config);
  AcceleratorState state;
  state.config = config;
  if (config.nodes) state.node = config.nodes->node;
  state.cores = cpu_backend()->device_count();
  state.libtorch_version = TORCH_VERSION;
  if (config.cpu) {
    choose_cpu(state, *config.cpu);
  } else if (config.gpus || !config.devices.empty()) {
    choose_gpus(state, config);
  } else {
    try {
      choose_gpus(state, config);
    } catch (const ConfigError&) {  // no GPU is usable
      choose_cpu(state, fitting_ranks(default_cpu_ranks(), config));
    }
  }
  apply_exact(state);
  require(!spans_nodes(config) || state.devices.front().is_cpu() || config.sharding != Sharding::optimizer,
          "sharding = optimizer on GPUs of several machines is not there yet; leave it on automatic");
  state.backend_name = state.backend->name();
  state.threads_per_rank = state.config.threads_per_rank > 0 ? state.config.threads_per_rank
                                                             : std::max(1, state.cores / state.local_ranks());
  if (!spans_nodes(config)) return state;
  state.joined = std::make_shared<LaunchedNode>(state);
  state.ranks_of_nodes = state.joined->exchange().ranks_of_nodes();
  apply_exact(state);  // the ranks are known now
  return state;
}

}  // namespace tandem
