// Where the memory of a rank's tensors comes from and goes to.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include <c10/core/CPUAllocator.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

double resident_mb() {
  std::ifstream statm("/proc/self/statm");
  double pages = 0, resident = 0;
  statm >> pages >> resident;
  return resident * 4096 / 1e6;
}

// Whether the kernel was told to put this address into a huge page.
bool huge_pages_asked_for(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%zx-%zx ", &begin, &end) == 2) inside = begin <= address && address < end;
    if (inside && line.starts_with("VmFlags:")) return (line + ' ').find(" hg ") != std::string::npos;
  }
  return false;
}

// Whether a tensor made right after another of that size was freed is in the same place.
bool memory_is_reused(std::int64_t elements) {
  const void* before = at::empty({elements}).const_data_ptr();
  return at::empty({elements}).const_data_ptr() == before;
}

}  // namespace

TEST_CASE("a rank's large tensors reuse the memory of those before them") {
  const auto reused = on_ranks<bool>(2, [](Accelerator&) {
    bool all = true;
    for (std::int64_t elements = 5'000; elements < 10'000'000; elements = elements * 3 + 1)
      all = all && memory_is_reused(elements);
    return all;
  });
  CHECK(reused == std::vector<bool>{true, true});
}

TEST_CASE("huge pages are asked for where a rank's tensor fills them") {
  if (!std::filesystem::exists("/sys/kernel/mm/transparent_hugepage")) return;
  const auto asked = on_ranks<bool>(2, [](Accelerator&) {
    const at::Tensor tensor = at::empty({7 * 1024 * 1024}, at::kByte);
    const auto* bytes = tensor.const_data_ptr<std::uint8_t>();
    return huge_pages_asked_for(bytes) && huge_pages_asked_for(bytes + 6 * 1024 * 1024 - 4096);
  });
  CHECK(asked == std::vector<bool>{true, true});
}

TEST_CASE("tensors are aligned, keep their numbers, and may be freed by other threads or after the launch") {
  std::vector<at::Tensor> kept(3);
  std::vector<at::Tensor> handed(3);
  const auto aligned = on_ranks<bool>(3, [&](Accelerator& accelerator) {
    const auto rank = static_cast<std::size_t>(accelerator.rank());
    bool all = true;
    std::vector<at::Tensor> tensors;
    for (std::int64_t bytes = 1; bytes < 60'000; bytes += 137) {
      tensors.push_back(at::full({bytes}, bytes % 100, at::kByte));
      all = all && reinterpret_cast<std::uintptr_t>(tensors.back().const_data_ptr()) % 64 == 0;
    }
    for (std::size_t i = 0; i < tensors.size(); ++i)
      all = all && tensors[i].eq(static_cast<std::int64_t>(1 + 137 * i) % 100).all().item<bool>();
    kept[rank] = at::full({100'000}, accelerator.rank());
    handed[rank] = at::full({1000}, accelerator.rank());
    accelerator.wait_for_everyone();
    handed[(rank + 1) % 3].reset();  // another rank's
    return all;
  });
  CHECK(aligned == std::vector<bool>{true, true, true});
  for (int rank = 0; rank < 3; ++rank) CHECK(kept[static_cast<std::size_t>(rank)].eq(rank).all().item<bool>());
  kept.clear();
}

TEST_CASE("memory that LibTorch's kernels ask for by themselves may be freed by any thread") {
  auto* const before = c10::GetCPUAllocator()->raw_allocate(100'000);
  void* within = nullptr;
  run_ranks(1, [&](Accelerator&) {
    // oneDNN's way, of no bytes too.
    c10::GetCPUAllocator()->raw_deallocate(c10::GetCPUAllocator()->raw_allocate(0));
    c10::GetCPUAllocator()->raw_deallocate(c10::GetCPUAllocator()->raw_allocate(100'000));
    c10::GetCPUAllocator()->raw_deallocate(before);
    within = c10::GetCPUAllocator()->raw_allocate(100'000);
  });
  c10::GetCPUAllocator()->raw_deallocate(within);
  run_ranks(2, [&](Accelerator&) { torch::nn::Conv2d(1, 3, 3)->forward(at::ones({64, 1, 28, 28})).sum().backward(); });
}

TEST_CASE("more memory than there is, is an error of LibTorch's") {
  const auto error = run_ranks_expecting_error(1, [](Accelerator&) { at::empty({std::int64_t{1} << 56}, at::kByte); });
  CHECK_THAT(error.what(), ContainsSubstring("allocate memory"));
}

TEST_CASE("what a rank keeps is bounded by what its tensors have used at a time") {
  const auto grown = on_ranks<double>(1, [](Accelerator&) {
    at::ones({40'000'000});  // 160 MB
    const double before = resident_mb();
    // Each of another size class, none larger than the first.
    for (std::int64_t elements = 39'000'000; elements > 10'000'000; elements -= 1'000'000) at::ones({elements});
    return resident_mb() - before;
  });
  CHECK(grown[0] < 200);  // all sizes together take 700
}

TEST_CASE("memory is not kept when it is not wanted, and never for other threads") {
  constexpr std::int64_t kLarge = 50'000'000;  // the C library gives that back at once
  const auto kept_mb = [&] {
    const double before = resident_mb();
    at::ones({kLarge});
    return resident_mb() - before;
  };
  const auto with = on_ranks<double>(1, [&](Accelerator&) { return kept_mb(); });
  const auto without = on_ranks<double>(1, {.keep_tensor_memory = false}, [&](Accelerator&) { return kept_mb(); });
  double other = 0;
  run_ranks(1, [&](Accelerator&) { std::thread([&] { other = kept_mb(); }).join(); });
  CHECK(with[0] > 150);
  CHECK(without[0] < 50);
  CHECK(other < 50);
  CHECK(kept_mb() < 50);
}

TEST_CASE("free_memory gives back on all ranks what a training has left, and another one begins as the first") {
  struct Seen {
    double trained, freed;
    at::Tensor first, second;
    std::string refusal;
  };
  const auto train = [](Accelerator& a) {
    torch::manual_seed(3);
    torch::nn::Linear net(2500, 2000);  // 20 MB
    torch::optim::Adam adam(net->parameters(), 1e-3);
    auto [model, optimizer] = a.prepare(net, adam);
    for (int step = 0; step < 2; ++step) {
      const at::Tensor y =
          nn::checkpoint([&](const at::Tensor& x) { return net(x).tanh(); }, at::ones({4, 2500}) * (1 + a.rank()));
      a.backward(y.sum());
      optimizer.step();
      optimizer.zero_grad();
    }
    return net->weight.detach().clone();
  };
  const auto seen = on_ranks<Seen>(2, [&](Accelerator& a) {
    Seen mine;
    mine.first = train(a);
    a.wait_for_everyone();
    mine.trained = resident_mb();
    a.wait_for_everyone();
    a.free_memory();
    mine.freed = resident_mb();
    a.wait_for_everyone();
    mine.second = train(a);
    try {
      const auto micro_batch = a.accumulate();
      a.free_memory();
    } catch (const ConfigError& error) {
      mine.refusal = error.what();
    }
    return mine;
  });
  for (const Seen& one : seen) {
    CHECK(one.trained - one.freed > 50);  // of weights, gradients and averages of 80 MB
    CHECK(at::equal(one.first, one.second));
    CHECK_THAT(one.refusal, ContainsSubstring("within an accumulation window"));
  }
}
