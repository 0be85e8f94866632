#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "backend/cuda/module.h"
#include "support/fake_device.h"
#include "support/fake_nccl.h"
#include "tandem/core/error.h"

namespace tandem::test {

/// Stands for the CUDA module: the fake CUDA's devices and a fake NCCL, with the faults that a test asks for.
class FakeModule final : public cuda::Module {
 public:
  FakeModule();

  std::vector<cuda::DeviceFacts> devices() override;
  comm::nccl::Api& nccl() override { return *fake_nccl; }
  bool enable_peer_access(int device, int peer) override { return device == peer || peer_access; }
  std::unique_ptr<Graph> make_graph() override;
  void on_out_of_memory(std::function<void(const OutOfMemory&)> tell) override {
    fake::on_out_of_memory(std::move(tell));
  }
  void reduce(const comm::Reduction& reduction, void* stream) override;

  const std::shared_ptr<FakeNccl> fake_nccl = std::make_shared<FakeNccl>();
  std::atomic<bool> peer_access{true};      ///< between different devices
  std::atomic<bool> transport_works{true};  ///< or what is written to the last rank's memory does not arrive
  std::atomic<bool> graphs_work{true};
  std::atomic<std::int64_t> good_reductions{INT64_MAX};  ///< after so many the transport works no more
  std::atomic<bool> hangs{false};                        ///< from then on
  std::atomic<std::int64_t> reductions{0};               ///< so far
};

}  // namespace tandem::test
