#include <filesystem>

#include "tandem/backend/backend.h"
#include "tandem/core/error.h"

namespace tandem {

std::shared_ptr<const Backend> gpu_backend() {
  std::error_code ignored;
  const bool driver = std::filesystem::exists("/proc/driver/nvidia/version", ignored);
  throw ConfigError(std::string("no GPU is usable: ") +
                    (driver ? "this build of Tandem has no GPU module" : "no NVIDIA driver is loaded on this machine") +
                    "; use CPU ranks");
}

}  // namespace tandem
