#include "core/cgroup_limit.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "core/system_files.h"

namespace tandem {
namespace {

namespace fs = std::filesystem;

bool is_in(const std::string& controller, const std::string& list) {
  return ("," + list + ",").find("," + controller + ",") != std::string::npos;
}

// Folders of this process's control group and of those around it, for a controller; "" is version 2.
std::vector<fs::path> control_groups(const std::string& root, const std::string& controller) {
  std::ifstream file(root + "/proc/self/cgroup");
  std::vector<fs::path> groups;
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? !controllers.empty() : !is_in(controller, controllers)) continue;
    // A folder of several controllers has a link for each, though not everywhere.
    for (const std::string& top : {root + "/sys/fs/cgroup/" + controller, root + "/sys/fs/cgroup/" + controllers}) {
      for (fs::path path = line.substr(second + 1); path.has_relative_path(); path = path.parent_path())
        groups.push_back(top / path.relative_path());
      groups.emplace_back(top);  // in a container the group itself may be mounted here
      if (controllers == controller) break;
    }
  }
  return groups;
}

template <class T>
void lower(std::optional<T>& limit, T other) {
  limit = std::min(limit.value_or(other), other);
}

int allowed_cores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

std::optional<double> cpu_limit(const std::string& root) {
  std::optional<double> limit;
  for (const auto& group : control_groups(root, "")) {  // "max 100000" or "150000 100000"
    std::istringstream text(first_line(group / "cpu.max"));
    double quota = 0, period = 0;
    if (text >> quota >> period && period > 0) lower(limit, quota / period);
  }
  for (const auto& group : control_groups(root, "cpu")) {
    const auto quota = number_in(first_line(group / "cpu.cfs_quota_us"));  // none: -1
    const auto period = number_in(first_line(group / "cpu.cfs_period_us"));
    if (quota && period && *period > 0) lower(limit, static_cast<double>(*quota) / static_cast<double>(*period));
  }
  return limit;
}

std::optional<std::uint64_t> memory_limit(std::uint64_t memory, const std::string& root) {
  std::optional<std::uint64_t> limit;
  const auto look = [&](const fs::path& path) {
    if (const auto bytes = number_in(first_line(path)); bytes && *bytes < memory) lower(limit, *bytes);
  };
  for (const auto& group : control_groups(root, "")) look(group / "memory.max");
  for (const auto& group : control_groups(root, "memory")) look(group / "memory.limit_in_bytes");
  return limit;
}

int usable_cores(const std::string& root) noexcept {
  int cores = std::max(1, allowed_cores());
  try {
    // Read once: each group of ranks and each ring asks, and reading takes 50 us.
    static const std::optional<double> own = cpu_limit();
    if (const auto limit = root.empty() ? own : cpu_limit(root); limit && *limit < cores)
      cores = std::max(1, static_cast<int>(std::ceil(*limit)));
  } catch (const std::exception&) {
    // For lack of memory: a limit that is not known is none.
  }
  return cores;
}

}  // namespace tandem
