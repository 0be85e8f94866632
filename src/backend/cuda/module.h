// The seam between Tandem and its CUDA module, libtandem_cuda: the only header that both include. No CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/graph.h"
#include "backend/out_of_memory.h"
#include "comm/nccl/api.h"
#include "comm/reduction_kernel.h"

namespace tandem::cuda {

/// Counts changes of this header: a module of another one is refused.
inline constexpr int kModuleVersion = 2;

/// What is known about a GPU.
struct DeviceFacts {
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  std::size_t memory = 0;    ///< bytes
  std::string pci_bus_id;    ///< such as 0000:3b:00.0
};

/// What only CUDA's own libraries can do; the rest goes through c10's device-generic interfaces. Thread-safe. Throws
/// tandem::Error with CUDA's text.
class Module : public comm::ReductionKernel {
 public:
  /// The GPUs that this process may use, in CUDA's order (CUDA_VISIBLE_DEVICES and MIG count).
  virtual std::vector<DeviceFacts> devices() = 0;

  virtual comm::nccl::Api& nccl() = 0;

  /// Whether `device` can read and write `peer`'s memory; from then on it may. True for itself.
  virtual bool enable_peer_access(int device, int peer) = 0;

  virtual std::unique_ptr<Graph> make_graph() = 0;

  /// Has `tell` hear, on the thread that asked for memory, when a device has none left. Once.
  virtual void on_out_of_memory(std::function<void(const OutOfMemory&)> tell) = 0;
};

/// What the module exports: makes it, or throws tandem::Error. LibTorch's CUDA library is there once it is loaded.
using MakeModule = std::unique_ptr<Module>();
inline constexpr const char* kMakeModule = "tandem_make_cuda_module";
inline constexpr const char* kVersionSymbol = "tandem_cuda_module_version";  // an int

}  // namespace tandem::cuda
