#include "backend/cuda/module.h"

#include <mutex>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/Generator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/PeerToPeerAccess.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include "backend/cuda/nccl_api.h"
#include "backend/cuda/reduce.h"
#include "tandem/core/error.h"

namespace tandem::cuda {
namespace {

void check(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // or the next one who asks takes this error for his
  throw Error(std::string(call) + " failed: " + cudaGetErrorString(result));
}

// What LibTorch throws shows its own source; only the first line is for users.
template <class Call>
auto with_our_errors(const Call& call) {
  try {
    return call();
  } catch (const c10::Error& error) {
    throw Error(error.what_without_backtrace());
  }
}

// What LibTorch would say of graphs without work, which are no fault here.
class Silence final : public c10::WarningHandler {
 public:
  void process(const c10::Warning&) override {}
};

class CudaGraph final : public Graph {
 public:
  void begin(const at::Generator& own) override {
    own_ = own;
    device_ = c10::cuda::current_device();
    begun_ = true;
    with_our_errors([&] { begin(graph_, pool_); });
  }

  void end() override {
    with_our_errors([&] { end(graph_); });
    begun_ = false;
  }

  void abandon() noexcept override {
    if (!std::exchange(begun_, false)) return;
    const auto tolerate = [](const auto& call) {
      try {
        call();
        return true;
      } catch (const std::exception&) {  // there was nothing to be undone
        return false;
      }
    };
    if (tolerate([&] { end(graph_); })) return;
    cudaGetLastError();
    // What LibTorch leaves undone where a recording fails: both allocators go on with it, and so do the generators,
    // until they are in another one that ends well.
    tolerate([&] {
      c10::cuda::CUDACachingAllocator::endAllocateToPool(device_, pool_);
      c10::cuda::CUDACachingAllocator::releasePool(device_, pool_);
    });
    tolerate([&] {
      at::getHostAllocator(c10::kCUDA)->end_allocate_to_pool(pool_);
      at::getHostAllocator(c10::kCUDA)->release_pool(pool_);
    });
    tolerate([&] {
      at::cuda::CUDAGraph empty;
      begin(empty, at::cuda::graph_pool_handle());
      end(empty);
    });
    cudaGetLastError();
  }

  void replay() override {
    with_our_errors([&] { graph_.replay(); });
  }

 private:
  void begin(at::cuda::CUDAGraph& graph, at::cuda::MempoolId_t pool) const {
    graph.register_generator_state(own_);
    // Other threads go on using CUDA meanwhile.
    graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  }

  static void end(at::cuda::CUDAGraph& graph) {
    Silence silence;
    const c10::WarningUtils::WarningHandlerGuard guard(&silence);
    graph.capture_end();
  }

  at::cuda::CUDAGraph graph_;
  const at::cuda::MempoolId_t pool_ = at::cuda::graph_pool_handle();
  at::Generator own_;
  c10::DeviceIndex device_ = 0;
  bool begun_ = false;
};

class CudaModule final : public Module {
 public:
  CudaModule() {
    with_our_errors([] { at::globalContext().lazyInitDevice(c10::kCUDA); });
  }

  std::vector<DeviceFacts> devices() override {
    int count = 0;
    check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    std::vector<DeviceFacts> all;
    for (int device = 0; device < count; ++device) all.push_back(facts_of(device));
    return all;
  }

  comm::nccl::Api& nccl() override { return nccl_; }

  bool enable_peer_access(int device, int peer) override {
    if (device == peer) return true;
    const std::lock_guard lock(mutex_);
    // LibTorch's, because its allocator has to know of it.
    return with_our_errors([&] {
      return at::cuda::get_p2p_access(static_cast<c10::DeviceIndex>(device), static_cast<c10::DeviceIndex>(peer));
    });
  }

  std::unique_ptr<Graph> make_graph() override { return std::make_unique<CudaGraph>(); }

  void on_out_of_memory(std::function<void(const OutOfMemory&)> tell) override {
    c10::cuda::CUDACachingAllocator::attachOutOfMemoryObserver(
        [tell = std::move(tell)](std::int64_t device, std::size_t requested, std::size_t, std::size_t free) {
          tell({static_cast<int>(device), requested, free});
        });
  }

  void prepare() override {
    if (const std::string problem = load_reductions(); !problem.empty())
      throw Error("the reduction kernels cannot be loaded: " + problem);
  }

  void reduce(const comm::Reduction& reduction, void* stream) override {
    const std::string problem = launch_reduction(reduction, stream);
    if (!problem.empty()) throw Error("the reduction kernel cannot be launched: " + problem);
  }

 private:
  static DeviceFacts facts_of(int device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    char bus_id[32] = "";
    check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, device), "cudaDeviceGetPCIBusId");
    return {properties.name, properties.major, properties.minor, properties.totalGlobalMem, bus_id};
  }

  NcclApi nccl_;
  std::mutex mutex_;
};

}  // namespace
}  // namespace tandem::cuda

#define TANDEM_EXPORT __attribute__((visibility("default")))

extern "C" {
TANDEM_EXPORT extern const int tandem_cuda_module_version;
const int tandem_cuda_module_version = tandem::cuda::kModuleVersion;

// C++'s types go over this seam: both sides are one build, which the version makes sure of.
TANDEM_EXPORT std::unique_ptr<tandem::cuda::Module> tandem_make_cuda_module() {
  return std::make_unique<tandem::cuda::CudaModule>();
}
}
