#include "common/machine.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "backend/cores.h"

namespace apps {
namespace {

namespace fs = std::filesystem;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::optional<std::uint64_t> number_in(const std::string& text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(number) : std::nullopt;
}

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
  return number_in(kilobytes.substr(0, kilobytes.find(' '))).value_or(0) * 1024;
}

int count_physical(const std::string& root, const std::vector<int>& cores) {
  std::set<std::string> siblings;
  for (const int core : cores) {
    const std::string topology = root + "/sys/devices/system/cpu/cpu" + std::to_string(core) + "/topology/";
    std::string threads = first_line(topology + "thread_siblings_list");
    siblings.insert(threads.empty() ? std::to_string(core) : std::move(threads));
  }
  return static_cast<int>(siblings.size());
}

std::vector<std::string> numa_nodes(const std::string& root) {
  std::vector<std::string> nodes;
  for (int node = 0;; ++node) {
    std::string cores = first_line(root + "/sys/devices/system/node/node" + std::to_string(node) + "/cpulist");
    if (cores.empty()) return nodes;
    nodes.push_back(std::move(cores));
  }
}

// Paths of this process's control group and of those around it, for a controller; "" is version 2.
std::vector<std::string> control_groups(const std::string& root, const std::string& controller) {
  std::ifstream file(root + "/proc/self/cgroup");
  std::vector<std::string> groups;
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos || line.substr(first + 1, second - first - 1) != controller) continue;
    const std::string top = root + "/sys/fs/cgroup/" + controller;
    for (fs::path path = line.substr(second + 1); path.has_relative_path(); path = path.parent_path())
      groups.push_back(top + path.string());
    groups.push_back(top);  // in a container the group itself may be mounted here
  }
  return groups;
}

template <class T>
void lower(std::optional<T>& limit, T other) {
  limit = std::min(limit.value_or(other), other);
}

std::optional<double> cpu_limit(const std::string& root) {
  std::optional<double> limit;
  for (const auto& group : control_groups(root, "")) {  // "max 100000" or "150000 100000"
    std::istringstream text(first_line(group + "/cpu.max"));
    double quota = 0, period = 0;
    if (text >> quota >> period && period > 0) lower(limit, quota / period);
  }
  for (const auto& controller : {"cpu", "cpu,cpuacct"})
    for (const auto& group : control_groups(root, controller)) {
      const auto quota = number_in(first_line(group + "/cpu.cfs_quota_us"));  // none: -1
      const auto period = number_in(first_line(group + "/cpu.cfs_period_us"));
      if (quota && period && *period > 0) lower(limit, static_cast<double>(*quota) / static_cast<double>(*period));
    }
  return limit;
}

// What is no less than the machine's memory is no limit.
std::optional<std::uint64_t> memory_limit(const std::string& root, std::uint64_t memory) {
  std::optional<std::uint64_t> limit;
  const auto look = [&](const std::string& path) {
    if (const auto bytes = number_in(first_line(path)); bytes && *bytes < memory) lower(limit, *bytes);
  };
  for (const auto& group : control_groups(root, "")) look(group + "/memory.max");
  for (const auto& group : control_groups(root, "memory")) look(group + "/memory.limit_in_bytes");
  return limit;
}

}  // namespace

Machine describe_machine(const std::string& root) {
  Machine machine;
  machine.cpu_model = field(root + "/proc/cpuinfo", "model name");
  machine.cores = tandem::allowed_cores();
  machine.physical_cores = count_physical(root, machine.cores);
  machine.numa = numa_nodes(root);
  machine.cpu_limit = cpu_limit(root);
  machine.memory = bytes_of(field(root + "/proc/meminfo", "MemTotal:"));
  machine.memory_available = bytes_of(field(root + "/proc/meminfo", "MemAvailable:"));
  machine.memory_limit = memory_limit(root, machine.memory);
  return machine;
}

}  // namespace apps
