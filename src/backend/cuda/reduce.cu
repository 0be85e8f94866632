// Compiled with -fmad=false, so that nvcc rounds after each operation, as the CPU's reductions do. Divisions, denormals
// and roundings to float16 are IEEE's on both sides by default.
#include "backend/cuda/reduce.h"

#include <algorithm>
#include <cstdint>

#include "backend/cuda/reduce_elements.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 256;  // of a block
constexpr std::size_t kMostBlocks = 1024;

template <class Element, class Combine>
__global__ void __launch_bounds__(kThreads) reduce(const __grid_constant__ Arguments arguments, bool aligned) {
  const std::size_t thread = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  reduce_part<Element, Combine>(arguments, aligned, thread, std::size_t{gridDim.x} * kThreads);
}

Arguments arguments_of(const comm::Reduction& reduction) {
  Arguments arguments{};
  std::copy(reduction.inputs.begin(), reduction.inputs.end(), arguments.inputs);
  std::copy(reduction.outputs.begin(), reduction.outputs.end(), arguments.outputs);
  arguments.input_count = static_cast<int>(reduction.inputs.size());
  arguments.output_count = static_cast<int>(reduction.outputs.size());
  arguments.count = reduction.count;
  arguments.mean = reduction.op == comm::ReduceOp::mean;
  return arguments;
}

bool all_aligned(const comm::Reduction& reduction) {
  const auto aligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
  return std::all_of(reduction.inputs.begin(), reduction.inputs.end(), aligned) &&
         std::all_of(reduction.outputs.begin(), reduction.outputs.end(), aligned);
}

}  // namespace

std::string load_reductions() {
  const auto load = []<class Element, class Combine>(std::type_identity<Element>, std::type_identity<Combine>) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, reduce<Element, Combine>);
  };
  constexpr auto kLastType = static_cast<int>(comm::ElementType::boolean);
  for (int type = 0; type <= kLastType; ++type)
    for (const auto op : {comm::ReduceOp::sum, comm::ReduceOp::product, comm::ReduceOp::max, comm::ReduceOp::min})
      if (const cudaError_t result = with_types(static_cast<comm::ElementType>(type), op, load);
          result != cudaSuccess) {
        cudaGetLastError();
        return cudaGetErrorString(result);
      }
  return "";
}

std::string launch_reduction(const comm::Reduction& reduction, void* stream) {
  if (reduction.inputs.size() > kMostRanks || reduction.outputs.size() > kMostRanks)
    return "a reduction takes at most " + std::to_string(kMostRanks) + " ranks";
  const Arguments arguments = arguments_of(reduction);
  const bool aligned = all_aligned(reduction);
  const auto launch = [&]<class Element, class Combine>(std::type_identity<Element>, std::type_identity<Combine>) {
    const std::size_t parts = aligned ? reduction.count * sizeof(Element) / 16 + 1 : reduction.count;
    const std::size_t blocks = std::clamp<std::size_t>((parts + kThreads - 1) / kThreads, 1, kMostBlocks);
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(blocks);
    config.blockDim = kThreads;
    config.stream = static_cast<cudaStream_t>(stream);
    // Unlike <<<>>> it returns this launch's error, not one that an earlier call has left.
    return cudaLaunchKernelEx(&config, reduce<Element, Combine>, arguments, aligned);
  };
  const cudaError_t result = with_types(reduction.type, reduction.op, launch);
  if (result == cudaSuccess) return "";
  cudaGetLastError();  // or the next one who asks takes this error for his
  return cudaGetErrorString(result);
}

}  // namespace tandem::cuda
