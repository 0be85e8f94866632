// Whole launches on GPU ranks, with a fake CUDA and a fake NCCL.
#pragma once

#include "backend/cuda/gpu_backend.h"
#include "support/fake_module.h"
#include "support/ranks.h"

namespace tandem::test {

// Launches on the fake's devices.
struct Machine {
  std::shared_ptr<FakeModule> module = std::make_shared<FakeModule>();
  std::shared_ptr<const Backend> backend = cuda::make_gpu_backend(module);

  LaunchConfig config(std::vector<int> devices, Transport transport = Transport::automatic) const {
    return {.devices = std::move(devices), .transport = transport, .backend = backend};
  }

  // Nothing is left over, and nothing was unordered.
  void check_clean() const {
    CHECK(fake::races() == std::vector<std::string>{});
    CHECK(module->fake_nccl->violations() == std::vector<std::string>{});
    CHECK(module->fake_nccl->alive() == 0);
    CHECK(fake::allocated() == 0);
  }

  std::string error_of(const LaunchConfig& config, const std::function<void(Accelerator&)>& body = {}) const {
    try {
      launch(
          config, body ? body : [](Accelerator&) {});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

}  // namespace tandem::test
