// Reductions allocate nothing once they have run: this program counts what its threads ask of operator new.
#include <cstdlib>
#include <new>

#include "support/ranks.h"
#include "tandem/comm/communicator.h"

namespace {
thread_local std::int64_t allocations = 0;
}

void* operator new(std::size_t bytes) {
  allocations += 1;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace tandem;
using namespace tandem::test;

TEST_CASE("an all-reduce or a barrier that has run before allocates nothing") {
  const std::int64_t length = GENERATE(10, 100'000);
  const auto counts = on_ranks<std::int64_t>(2, [&](Accelerator& accelerator) {
    auto& communicator = accelerator.communicator();
    const std::vector<at::Tensor> tensors{at::ones({length}), at::ones({3}, at::kLong)};
    const auto step = [&] {
      communicator.all_reduce(tensors, comm::ReduceOp::sum);
      accelerator.wait_for_everyone();
    };
    for (int i = 0; i < 3; ++i) step();
    const std::int64_t before = allocations;
    for (int i = 0; i < 10; ++i) step();
    return allocations - before;
  });
  CHECK(counts == std::vector<std::int64_t>{0, 0});
}
