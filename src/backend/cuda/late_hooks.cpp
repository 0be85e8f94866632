#include "backend/cuda/late_hooks.h"

#include <atomic>
#include <memory>
#include <string>

#include <ATen/detail/CUDAHooksInterface.h>

namespace tandem::cuda {
namespace {

using at::CUDAHooksInterface;
using c10::DeviceIndex;

std::atomic<const CUDAHooksInterface*> real{nullptr};

// What LibTorch's interface answers without CUDA, until the real hooks are there.
class LateHooks final : public CUDAHooksInterface {
 public:
#define TANDEM_FORWARD(type, name, parameters, arguments)              \
  type name parameters const override {                                \
    if (const auto* hooks = real.load()) return hooks->name arguments; \
    return CUDAHooksInterface::name arguments;                         \
  }

  TANDEM_FORWARD(bool, isBuilt, (), ())
  TANDEM_FORWARD(bool, isAvailable, (), ())
  TANDEM_FORWARD(bool, hasPrimaryContext, (DeviceIndex device), (device))
  TANDEM_FORWARD(void, init, (), ())
  TANDEM_FORWARD(DeviceIndex, deviceCount, (), ())
  TANDEM_FORWARD(void, setCurrentDevice, (DeviceIndex device), (device))
  TANDEM_FORWARD(DeviceIndex, getCurrentDevice, (), ())
  TANDEM_FORWARD(DeviceIndex, exchangeDevice, (DeviceIndex device), (device))
  TANDEM_FORWARD(DeviceIndex, maybeExchangeDevice, (DeviceIndex device), (device))
  TANDEM_FORWARD(bool, isPinnedPtr, (const void* data), (data))
  TANDEM_FORWARD(c10::Allocator*, getPinnedMemoryAllocator, (), ())
  TANDEM_FORWARD(c10::Device, getDeviceFromPtr, (void* data), (data))
  TANDEM_FORWARD(const at::Generator&, getDefaultGenerator, (DeviceIndex device), (device))
  TANDEM_FORWARD(at::Generator, getNewGenerator, (DeviceIndex device), (device))
  TANDEM_FORWARD(bool, hasCUDA, (), ())
  TANDEM_FORWARD(bool, hasCUDART, (), ())
  TANDEM_FORWARD(bool, hasMAGMA, (), ())
  TANDEM_FORWARD(bool, hasCuDNN, (), ())
  TANDEM_FORWARD(bool, hasCuSOLVER, (), ())
  TANDEM_FORWARD(bool, hasCuBLASLt, (), ())
  TANDEM_FORWARD(bool, hasROCM, (), ())
  TANDEM_FORWARD(bool, hasCKSDPA, (), ())
  TANDEM_FORWARD(bool, hasCKGEMM, (), ())
  TANDEM_FORWARD(const at::cuda::NVRTC&, nvrtc, (), ())
  TANDEM_FORWARD(DeviceIndex, current_device, (), ())
  TANDEM_FORWARD(c10::Allocator*, getCUDADeviceAllocator, (), ())
  TANDEM_FORWARD(bool, compiledWithCuDNN, (), ())
  TANDEM_FORWARD(bool, compiledWithMIOpen, (), ())
  TANDEM_FORWARD(bool, supportsDilatedConvolutionWithCuDNN, (), ())
  TANDEM_FORWARD(bool, supportsDepthwiseConvolutionWithCuDNN, (), ())
  TANDEM_FORWARD(bool, supportsBFloat16ConvolutionWithCuDNNv8, (), ())
  TANDEM_FORWARD(bool, supportsBFloat16RNNWithCuDNN, (), ())
  TANDEM_FORWARD(long, versionCuDNN, (), ())
  TANDEM_FORWARD(long, versionRuntimeCuDNN, (), ())
  TANDEM_FORWARD(long, versionCuDNNFrontend, (), ())
  TANDEM_FORWARD(long, versionMIOpen, (), ())
  TANDEM_FORWARD(long, versionHipBLASLt, (), ())
  TANDEM_FORWARD(long, versionCUDART, (), ())
  TANDEM_FORWARD(std::string, showConfig, (), ())
  TANDEM_FORWARD(double, batchnormMinEpsilonCuDNN, (), ())
  TANDEM_FORWARD(std::int64_t, cuFFTGetPlanCacheMaxSize, (DeviceIndex device), (device))
  TANDEM_FORWARD(void, cuFFTSetPlanCacheMaxSize, (DeviceIndex device, std::int64_t size), (device, size))
  TANDEM_FORWARD(std::int64_t, cuFFTGetPlanCacheSize, (DeviceIndex device), (device))
  TANDEM_FORWARD(void, cuFFTClearPlanCache, (DeviceIndex device), (device))
  TANDEM_FORWARD(int, getNumGPUs, (), ())
  TANDEM_FORWARD(void, deviceSynchronize, (DeviceIndex device), (device))
#undef TANDEM_FORWARD
};

constexpr const char* kName = "CUDAHooks";  // LibTorch's for the real ones, which replace those of lower priority

const bool registered = [] {
  auto& registry = *at::CUDAHooksRegistry();
  if (!registry.Has(kName))
    registry.Register(
        kName, [](at::CUDAHooksArgs) -> std::unique_ptr<CUDAHooksInterface> { return std::make_unique<LateHooks>(); },
        c10::REGISTRY_FALLBACK);
  return true;
}();

}  // namespace

void connect_cuda_hooks() {
  auto hooks = at::CUDAHooksRegistry()->Create(kName, at::CUDAHooksArgs{});
  if (!registered || !hooks || dynamic_cast<LateHooks*>(hooks.get())) return;
  const CUDAHooksInterface* none = nullptr;
  if (real.compare_exchange_strong(none, hooks.get())) hooks.release();  // for as long as LibTorch keeps its own
}

}  // namespace tandem::cuda
