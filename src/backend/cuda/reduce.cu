// Compiled with -fmad=false: a fused multiply-add would round a product of complex numbers in another way.
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

std::string launch_reduction(const comm::Reduction& reduction, void* stream) {
  if (reduction.inputs.size() > kMostRanks || reduction.outputs.size() > kMostRanks)
    return "a reduction takes at most " + std::to_string(kMostRanks) + " ranks";
  const Arguments arguments = arguments_of(reduction);
  const bool aligned = all_aligned(reduction);
  const auto launch = [&]<class Element, class Combine>(std::type_identity<Element>, std::type_identity<Combine>) {
    const std::size_t parts = aligned ? reduction.count * sizeof(Element) / 16 + 1 : reduction.count;
    const std::size_t blocks = std::clamp<std::size_t>((parts + kThreads - 1) / kThreads, 1, kMostBlocks);
    reduce<Element, Combine>
        <<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments, aligned);
    return cudaGetLastError();
  };
  const cudaError_t result = with_types(reduction.type, reduction.op, launch);
  return result == cudaSuccess ? "" : cudaGetErrorString(result);
}

}  // namespace tandem::cuda
