// Stands for libtandem_cuda as a file: of version FAKE_VERSION, it fails with FAKE_ERROR or has no devices.
#include "backend/cuda/module.h"
#include "tandem/core/error.h"

namespace {

class NoDevices final : public tandem::cuda::Module {
 public:
  std::vector<tandem::cuda::DeviceFacts> devices() override { return {}; }
  tandem::comm::nccl::Api& nccl() override { throw tandem::Error("no NCCL"); }
  bool enable_peer_access(int, int) override { return false; }
  std::unique_ptr<tandem::Graph> make_graph() override { return nullptr; }
  void on_out_of_memory(std::function<void(const tandem::OutOfMemory&)>) override {}
  void reduce(const tandem::comm::Reduction&, void*) override {}
};

}  // namespace

// Compiled as the module is: all else is hidden.
#define TANDEM_EXPORT __attribute__((visibility("default")))

extern "C" {
TANDEM_EXPORT extern const int tandem_cuda_module_version;
const int tandem_cuda_module_version = FAKE_VERSION;

TANDEM_EXPORT std::unique_ptr<tandem::cuda::Module> tandem_make_cuda_module() {
#ifdef FAKE_ERROR
  throw tandem::Error(FAKE_ERROR);
#else
  return std::make_unique<NoDevices>();
#endif
}
}
