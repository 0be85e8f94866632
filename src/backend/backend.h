#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <c10/core/Device.h>

#include "backend/graph.h"
#include "core/launch_end.h"
#include "tandem/backend/transport.h"
#include "tandem/comm/communicator.h"
#include "tandem/core/warning_sink.h"

namespace tandem::comm {
class RankGroup;
}

namespace tandem {

/// A backend's part of one launch.
class BackendSession {
 public:
  virtual ~BackendSession() = default;

  /// `rank`'s communicator, which does not outlive the session. On the rank's thread. Collective.
  virtual std::unique_ptr<comm::Communicator> make_communicator(int rank) = 0;

  /// After the token has fired, on the launching thread: frees ranks that wait for their devices, within a time limit.
  virtual LaunchEnd cancel() = 0;

  /// After all ranks have ended well, on the launching thread.
  virtual LaunchEnd finish() = 0;
};

/// What a device type provides to Tandem. CPU is built in.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual c10::DeviceType type() const = 0;  ///< of its devices
  virtual std::string name() const = 0;      ///< as messages show it, "CPU"

  /// Number of devices; for the CPU the number of cores this process may use at a time.
  virtual int device_count() const = 0;

  /// The device with this index. CPU ranks all have the device `cpu`.
  virtual c10::Device device(int index) const = 0;

  /// The cores near the device with this index; empty: all are.
  virtual std::vector<int> cores_near(int) const { return {}; }

  /// What tells the device with this index from all others of this host; empty: nothing does, as for the CPU.
  virtual std::string identity(int) const { return {}; }

  /// A graph for work of the calling thread's device; null where there are none.
  virtual std::unique_ptr<Graph> make_graph() const { return nullptr; }

  /// What the ranks of `group`, which outlives it, share of the backend while their launch runs on `devices`. Throws
  /// ConfigError when they cannot exchange data in this way.
  virtual std::unique_ptr<BackendSession> begin(comm::RankGroup& group, std::vector<c10::Device> devices,
                                                Transport transport, const WarningSink& warn) const = 0;
};

/// The backend of CPU ranks.
std::shared_ptr<const Backend> cpu_backend();

/// The backend of NVIDIA GPUs. Throws ConfigError that says why no GPU is usable.
std::shared_ptr<const Backend> gpu_backend();

}  // namespace tandem
