#include "backend/rank_memory.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

namespace tandem {
namespace {

class Cache;

// Stands before each block; as long as LibTorch's alignment.
struct alignas(64) Header {
  Cache* owner;
  Header* next;  // in the list of free blocks
  int size_class;
};

// Sizes of blocks: four between a power of two and the next. What a block has too much is never touched.
constexpr int kSizesPerOctave = 4;
constexpr std::size_t kSmallest = 256;

int size_class_of(std::size_t bytes) {
  if (bytes <= kSmallest) return 0;
  const int octave = std::bit_width(bytes - 1) - 1;  // 2^octave < bytes <= 2^(octave + 1)
  const std::size_t step = (std::size_t{1} << octave) / kSizesPerOctave;
  const std::size_t steps = (bytes - (std::size_t{1} << octave) + step - 1) / step;  // 1 to 4
  return (octave - std::countr_zero(kSmallest)) * kSizesPerOctave + static_cast<int>(steps);
}

std::size_t size_of_class(int size_class) {
  const std::size_t power = kSmallest << (size_class / kSizesPerOctave);
  return power + power / kSizesPerOctave * static_cast<std::size_t>(size_class % kSizesPerOctave);
}

// The free blocks of one thread, by size.
class Cache {
 public:
  Cache() = default;
  ~Cache() { free_all(); }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  // Throws c10::Error when there is no memory.
  Header* take(std::size_t bytes) {
    const int size_class = size_class_of(bytes);
    const std::size_t size = size_of_class(size_class);
    Header*& list = list_of(size_class);
    Header* block = list;
    if (block) {
      list = block->next;
      kept_ -= size;
    } else {
      block = new_block(size_class, size);
    }
    used_ += size;
    most_used_ = std::max(most_used_, used_);
    return block;
  }

  void give_back(Header* block) {
    const std::size_t size = size_of_class(block->size_class);
    used_ -= size;
    // Sizes change: those of before would be kept for ever.
    if (kept_ + size > 2 * most_used_) free_all();
    kept_ += size;
    Header*& list = list_of(block->size_class);
    block->next = list;
    list = block;
  }

 private:
  Header*& list_of(int size_class) { return free_[static_cast<std::size_t>(size_class)]; }

  Header* new_block(int size_class, std::size_t size) {
    void* memory = nullptr;
    try {
      memory = c10::alloc_cpu(sizeof(Header) + size);
    } catch (const c10::Error&) {
      free_all();  // blocks of other sizes may be what is missing
      memory = c10::alloc_cpu(sizeof(Header) + size);
    }
    return new (memory) Header{this, nullptr, size_class};
  }

  void free_all() {
    for (Header*& list : free_)
      while (list) c10::free_cpu(std::exchange(list, list->next));
    kept_ = 0;
  }

  std::array<Header*, 40 * kSizesPerOctave> free_{};  // up to 2^48 bytes
  std::size_t used_ = 0, most_used_ = 0, kept_ = 0;   // bytes; what other threads have freed counts as used
};

thread_local Cache* this_threads = nullptr;

void release(void* data) {
  c10::profiledCPUMemoryReporter().Delete(data);
  Header* block = static_cast<Header*>(data) - 1;
  if (block->owner == this_threads)
    this_threads->give_back(block);
  else
    c10::free_cpu(block);  // its owner has ended, or would never see it again if another thread kept it
}

// Stands before LibTorch's CPU allocator, or the host program's.
class RankAllocator final : public at::Allocator {
 public:
  explicit RankAllocator(at::Allocator& other) : other_(other) {}

  at::DataPtr allocate(std::size_t bytes) override {
    if (!this_threads || bytes == 0) return other_.allocate(bytes);
    void* data = this_threads->take(bytes) + 1;
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &release, at::Device(at::kCPU)};
  }

  // Memory without a DataPtr is to be freed by a thread of the kind that made it.
  at::DeleterFnPtr raw_deleter() const override { return this_threads ? &release : other_.raw_deleter(); }

  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  at::Allocator& other_;
};

// Never taken away again: a tensor of another thread might just be asking for memory.
void install_once() {
  static std::once_flag once;
  std::call_once(once, [] { c10::SetCPUAllocator(new RankAllocator(*c10::GetCPUAllocator())); });
}

}  // namespace

RankMemoryScope::RankMemoryScope() {
  install_once();
  this_threads = new Cache;
}

RankMemoryScope::~RankMemoryScope() { delete std::exchange(this_threads, nullptr); }

}  // namespace tandem
