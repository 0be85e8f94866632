// The cores that threads may use.
#pragma once

#include <sched.h>

#include <string>
#include <vector>

namespace tandem {

/// The cores that this thread may use, in order; empty when the system does not say.
std::vector<int> allowed_cores();

/// Numbers in the kernel's notation, such as "0-3,8"; empty when `text` is no such list.
std::vector<int> parse_core_list(const std::string& text);

/// Cores that are near the PCI device with this number (0000:3b:00.0), as the kernel says; empty where it does not.
std::vector<int> cores_of_pci_device(const std::string& bus_id);

/// A share of `allowed` for each rank, `near[rank]` being the cores that are near its device (empty: all): with
/// `pinned`, ranks that are near the same cores divide these among them. An empty share: any core will do.
std::vector<std::vector<int>> core_shares(const std::vector<int>& allowed, std::vector<std::vector<int>> near,
                                          bool pinned);

/// Puts the calling thread back on the cores that it had.
class KeepCores {
 public:
  KeepCores() : known_(sched_getaffinity(0, sizeof cores_, &cores_) == 0) {}
  ~KeepCores() {
    if (known_) sched_setaffinity(0, sizeof cores_, &cores_);
  }
  KeepCores(const KeepCores&) = delete;
  KeepCores& operator=(const KeepCores&) = delete;

 private:
  cpu_set_t cores_{};
  bool known_;
};

}  // namespace tandem
