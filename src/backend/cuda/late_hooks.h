#pragma once

namespace tandem::cuda {

/// To be called when LibTorch's CUDA library has been loaded. LibTorch looks for it once, at the first backward pass or
/// question about CUDA, and for ever believes what it has found: without more, a program that has trained on the CPU
/// could not go over to GPUs. This file therefore registers hooks of its own when the program starts, which LibTorch
/// finds then, and which pass calls on to the real ones from here on.
void connect_cuda_hooks();

}  // namespace tandem::cuda
