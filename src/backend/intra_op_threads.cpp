#include "intra_op_threads.h"

#include <dlfcn.h>

#include <ATen/Parallel.h>

namespace tandem {

void set_intra_op_threads(int threads) {
  // LibTorch initialises a thread's count at its first use from the process-wide one; do that first.
  at::get_num_threads();
  // at::set_num_threads would change the count of every thread of the process. OpenMP's is the calling thread's own,
  // and LibTorch reads it. Its library comes with LibTorch, so it is looked up, not linked a second time.
  using SetThreads = void (*)(int);
  if (auto set = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) set(threads);
}

}  // namespace tandem
