#include "common/machine.h"

#include <fstream>
#include <set>

#include "backend/cores.h"
#include "core/cgroup_limit.h"
#include "core/system_files.h"

namespace apps {
namespace {

// The value of "key : value" or "key: value kB".
std::string field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t begin = line.find_first_not_of(" \t", line.find(':') + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return {};
}

std::uint64_t bytes_of(const std::string& kilobytes) {
  return tandem::number_in(kilobytes.substr(0, kilobytes.find(' '))).value_or(0) * 1024;
}

int count_physical(const std::string& root, const std::vector<int>& cores) {
  std::set<std::string> siblings;
  for (const int core : cores) {
    const std::string topology = root + "/sys/devices/system/cpu/cpu" + std::to_string(core) + "/topology/";
    std::string threads = tandem::first_line(topology + "thread_siblings_list");
    siblings.insert(threads.empty() ? std::to_string(core) : std::move(threads));
  }
  return static_cast<int>(siblings.size());
}

std::vector<std::string> numa_nodes(const std::string& root) {
  std::vector<std::string> nodes;
  for (int node = 0;; ++node) {
    std::string cores = tandem::first_line(root + "/sys/devices/system/node/node" + std::to_string(node) + "/cpulist");
    if (cores.empty()) return nodes;
    nodes.push_back(std::move(cores));
  }
}

}  // namespace

Machine describe_machine(const std::string& root) {
  Machine machine;
  machine.cpu_model = field(root + "/proc/cpuinfo", "model name");
  machine.cores = tandem::allowed_cores();
  machine.physical_cores = count_physical(root, machine.cores);
  machine.numa = numa_nodes(root);
  machine.cpu_limit = tandem::cpu_limit(root);
  machine.memory = bytes_of(field(root + "/proc/meminfo", "MemTotal:"));
  machine.memory_available = bytes_of(field(root + "/proc/meminfo", "MemAvailable:"));
  machine.memory_limit = tandem::memory_limit(machine.memory, root);
  return machine;
}

}  // namespace apps
