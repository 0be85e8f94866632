#include "core/asymmetric_fence.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace tandem {
namespace {

bool membarrier(int command) noexcept { return syscall(SYS_membarrier, command, 0, 0) == 0; }

// A process says once that it wants such fences; the kernel keeps that, and nothing else changes.
bool registered() noexcept {
  static const bool done = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
  return done;
}

}  // namespace

AsymmetricFence::AsymmetricFence() noexcept : heavy_works_(registered()) {}

void AsymmetricFence::heavy_fence() const noexcept {
  if (heavy_works_) membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

}  // namespace tandem
