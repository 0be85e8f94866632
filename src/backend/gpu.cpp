#include <memory>
#include <mutex>

#include "backend/backend.h"
#include "backend/cuda/gpu_backend.h"
#include "backend/cuda/load_module.h"

namespace tandem {

// Loaded once; where that fails, looked for again: a driver may come while a program runs.
std::shared_ptr<const Backend> gpu_backend() {
  static std::mutex mutex;
  static std::shared_ptr<const Backend> backend;
  const std::lock_guard lock(mutex);
  if (!backend) backend = cuda::make_gpu_backend(cuda::load_module(cuda::usual_places()));
  return backend;
}

}  // namespace tandem
