// GPU ranks, on top of the CUDA module or what stands for it.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/module.h"

namespace tandem::cuda {

/// The backend of the module's GPUs.
std::shared_ptr<const Backend> make_gpu_backend(std::shared_ptr<Module> module);

}  // namespace tandem::cuda
