#pragma once

#include <memory>
#include <string>

#include <c10/core/Device.h>

#include "tandem/comm/communicator.h"

namespace tandem {

/// What a device type provides to Tandem. CPU is built in.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual c10::DeviceType type() const = 0;
  virtual std::string name() const = 0;  ///< as messages show it, "CPU"

  /// Number of devices; for the CPU the number of cores this process may use.
  virtual int device_count() const = 0;

  /// The device with this index. CPU ranks all have the device `cpu`.
  virtual c10::Device device(int index) const = 0;

  /// One rank's communicator. Called on the rank's thread, by all ranks of `group`, which outlives it.
  virtual std::unique_ptr<comm::Communicator> make_communicator(comm::RankGroup& group, int rank) const = 0;
};

/// The backend of CPU ranks.
std::shared_ptr<const Backend> cpu_backend();

/// The backend of NVIDIA GPUs. Throws ConfigError that says why no GPU is usable.
std::shared_ptr<const Backend> gpu_backend();

}  // namespace tandem
