// The fake CUDA as the file that Tandem loads: with it and a fake driver, programs find eight GPUs.
#include <cstdlib>

#include "support/fake_module.h"

extern "C" {
extern const int tandem_cuda_module_version;
const int tandem_cuda_module_version = tandem::cuda::kModuleVersion;

// TANDEM_FAKE_GOOD_REDUCTIONS=N: after N of them, what is written to the last rank's memory does not arrive; with
// TANDEM_FAKE_HANGS, the next one never ends. TANDEM_FAKE_LARGEST_TENSOR=BYTES: a larger one is an out of memory; with
// TANDEM_FAKE_SMALL_DEVICE=N only on that device.
std::unique_ptr<tandem::cuda::Module> tandem_make_cuda_module() {
  auto module = std::make_unique<tandem::test::FakeModule>();
  if (const char* const good = std::getenv("TANDEM_FAKE_GOOD_REDUCTIONS")) module->good_reductions = std::atoll(good);
  module->hangs = std::getenv("TANDEM_FAKE_HANGS") != nullptr;
  if (const char* const bytes = std::getenv("TANDEM_FAKE_LARGEST_TENSOR")) {
    const char* const device = std::getenv("TANDEM_FAKE_SMALL_DEVICE");
    tandem::test::fake::set_largest_tensor(static_cast<std::size_t>(std::atoll(bytes)),
                                           device ? std::atoi(device) : -1);
  }
  return module;
}
}
