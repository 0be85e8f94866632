// The fake CUDA as the file that Tandem loads: with it and a fake driver, programs find eight GPUs.
#include "support/fake_module.h"

extern "C" {
extern const int tandem_cuda_module_version;
const int tandem_cuda_module_version = tandem::cuda::kModuleVersion;

std::unique_ptr<tandem::cuda::Module> tandem_make_cuda_module() { return std::make_unique<tandem::test::FakeModule>(); }
}
