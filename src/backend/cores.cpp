#include "backend/cores.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>
#include <iterator>
#include <map>

namespace tandem {

std::vector<int> allowed_cores() {
  cpu_set_t allowed;
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &allowed)) cores.push_back(core);
  return cores;
}

std::vector<int> parse_core_list(const std::string& text) {
  std::vector<int> cores;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    int first = 0;
    auto read = std::from_chars(at, end, first);
    int last = first;
    if (read.ec == std::errc() && read.ptr != end && *read.ptr == '-') read = std::from_chars(read.ptr + 1, end, last);
    if (read.ec != std::errc() || first < 0 || last < first || last >= CPU_SETSIZE) return {};
    for (int core = first; core <= last; ++core) cores.push_back(core);
    at = read.ptr;
    if (at != end && *at++ != ',') return {};
  }
  return cores;
}

std::vector<int> cores_of_pci_device(const std::string& bus_id) {
  std::string name = bus_id;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  std::ifstream file("/sys/bus/pci/devices/" + name + "/local_cpulist");
  std::string line;
  std::getline(file, line);
  return parse_core_list(line);
}

std::vector<std::vector<int>> core_shares(const std::vector<int>& allowed, std::vector<std::vector<int>> near,
                                          bool pinned) {
  std::map<std::vector<int>, std::vector<std::size_t>> neighbours;  // ranks, by the cores that they are near
  for (std::size_t rank = 0; rank < near.size(); ++rank) {
    std::sort(near[rank].begin(), near[rank].end());
    std::vector<int> usable;
    std::set_intersection(near[rank].begin(), near[rank].end(), allowed.begin(), allowed.end(),
                          std::back_inserter(usable));
    if (usable.empty()) usable = allowed;
    neighbours[usable].push_back(rank);
    near[rank] = !pinned && usable != allowed ? usable : std::vector<int>();
  }
  if (!pinned) return near;
  for (const auto& [cores, ranks] : neighbours)
    for (std::size_t i = 0; i < std::max(ranks.size(), cores.size()) && !cores.empty(); ++i)
      near[ranks[i % ranks.size()]].push_back(cores[i % cores.size()]);
  return near;
}

}  // namespace tandem
