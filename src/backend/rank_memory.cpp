#include "backend/rank_memory.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#include <sys/mman.h>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

namespace tandem {
namespace {

// Stands before each block of ours, at the beginning of a page.
struct Header {
  std::uint64_t mark;
  std::uint64_t owner;  // its cache's number
  Header* next;         // in the list of free blocks
  int size_class;
};

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = 2 * 1024 * 1024;  // of x86-64; another size only makes the advice useless
constexpr std::size_t kHeaderBytes = 64;            // LibTorch's alignment
static_assert(sizeof(Header) <= kHeaderBytes);

// Blocks that are smaller are left to the C library, which keeps them itself.
constexpr std::size_t kSmallest = 16 * 1024;
constexpr std::size_t kLargest = std::size_t{1} << 48;  // no machine has more; the other allocator says so

// No other memory has a block's mark: it depends on the address, and is wiped out when the block is given back.
std::uint64_t mark_of(const Header* header) { return reinterpret_cast<std::uintptr_t>(header) ^ 0x54616e64656d2721ull; }

// The block of which `data` is the tensor's memory; null when it is not one of ours. Whatever memory it is, what is
// looked at lies on the same page.
Header* block_of(void* data) {
  if (reinterpret_cast<std::uintptr_t>(data) % kPage != kHeaderBytes) return nullptr;
  auto* header = reinterpret_cast<Header*>(static_cast<std::byte*>(data) - kHeaderBytes);
  return header->mark == mark_of(header) ? header : nullptr;
}

void* data_of(Header* block) { return reinterpret_cast<std::byte*>(block) + kHeaderBytes; }

std::size_t up_to_multiple(std::size_t bytes, std::size_t of) { return (bytes + of - 1) / of * of; }

// Large memory comes from the kernel and goes back to it: the C library would keep what is freed between other blocks.
void* map_large(std::size_t size) {
  auto* const mapped = static_cast<std::byte*>(
      mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (mapped == MAP_FAILED) return nullptr;
  const std::size_t before =
      up_to_multiple(reinterpret_cast<std::uintptr_t>(mapped), kHugePage) - reinterpret_cast<std::uintptr_t>(mapped);
  if (before > 0) munmap(mapped, before);
  if (before < kHugePage) munmap(mapped + before + size, kHugePage - before);
  return mapped + before;
}

// The memory of a block with so many bytes, header included, of which a tensor fills `filled` at first. A large one is
// asked for in huge pages: a step goes through hundreds of megabytes, more than the processor has addresses of small
// pages for. Only those that the tensor fills, so that no memory is used for what it leaves over.
void* new_memory(std::size_t size, std::size_t filled) {
  if (size < kHugePage) return std::aligned_alloc(kPage, up_to_multiple(size, kPage));
  void* const memory = map_large(up_to_multiple(size, kPage));
  // A kernel that has no huge pages gives small ones as ever.
  if (memory) madvise(memory, filled / kHugePage * kHugePage, MADV_HUGEPAGE);
  return memory;
}

void free_memory(void* memory, std::size_t size) {
  if (size < kHugePage)
    std::free(memory);
  else
    munmap(memory, up_to_multiple(size, kPage));
}

// Sizes of blocks: four between a power of two and the next. What a block has too much is never touched.
constexpr int kSizesPerOctave = 4;

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

void destroy(Header* block) {
  const std::size_t size = kHeaderBytes + size_of_class(block->size_class);
  *static_cast<volatile std::uint64_t*>(&block->mark) = 0;
  free_memory(block, size);
}

// The free blocks of one thread, by size.
class Cache {
 public:
  Cache() : number_(next_number.fetch_add(1, std::memory_order_relaxed)) {}
  ~Cache() { free_all(); }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  bool owns(const Header* block) const { return block->owner == number_; }

  // Null when there is no memory; then what was free is not kept any more.
  Header* take(std::size_t bytes) {
    const int size_class = size_class_of(bytes);
    const std::size_t size = size_of_class(size_class);
    Header*& list = list_of(size_class);
    Header* block = list;
    if (block) {
      list = block->next;
      kept_ -= size;
    } else {
      block = new_block(size_class, bytes);
      if (!block) return nullptr;
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

  void free_all() {
    for (Header*& list : free_)
      while (list) destroy(std::exchange(list, list->next));
    kept_ = 0;
  }

  // As if the tensors that are there now were the first.
  void start_anew() {
    free_all();
    most_used_ = used_;
  }

 private:
  // Numbers, because a later cache may have an earlier one's address.
  static inline std::atomic<std::uint64_t> next_number{1};

  Header*& list_of(int size_class) { return free_[static_cast<std::size_t>(size_class)]; }

  Header* new_block(int size_class, std::size_t bytes) {
    void* memory = new_memory(kHeaderBytes + size_of_class(size_class), kHeaderBytes + bytes);
    if (!memory) {
      free_all();  // what is missing may be in blocks of other sizes
      return nullptr;
    }
    auto* block = static_cast<Header*>(memory);
    return new (memory) Header{mark_of(block), number_, nullptr, size_class};
  }

  const std::uint64_t number_;
  std::array<Header*, (48 - 14) * kSizesPerOctave + 1> free_{};  // from kSmallest to kLargest
  std::size_t used_ = 0, most_used_ = 0, kept_ = 0;              // bytes; what other threads have freed counts as used
};

thread_local Cache* this_threads = nullptr;

at::Allocator* others = nullptr;  // LibTorch's CPU allocator, or the host program's

void release(void* data) {
  Header* block = block_of(data);
  if (!block) {  // memory without a DataPtr, made by the other allocator
    if (const auto deleter = others->raw_deleter()) deleter(data);
    return;
  }
  c10::profiledCPUMemoryReporter().Delete(data);
  if (this_threads && this_threads->owns(block))
    this_threads->give_back(block);
  else
    destroy(block);  // its owner has ended, or would never see it again if another thread kept it
}

// Stands before the other allocator, and asks it for all that is not a rank's or small.
class RankAllocator final : public at::Allocator {
 public:
  at::DataPtr allocate(std::size_t bytes) override {
    Header* block = this_threads && bytes >= kSmallest && bytes <= kLargest ? this_threads->take(bytes) : nullptr;
    if (!block) return others->allocate(bytes);
    void* data = data_of(block);
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &release, at::Device(at::kCPU)};
  }

  at::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

void install_rank_memory() {
  static std::once_flag once;
  std::call_once(once, [] {
    others = c10::GetCPUAllocator();
    c10::SetCPUAllocator(new RankAllocator);
  });
}

void free_rank_memory() {
  if (this_threads) this_threads->start_anew();
}

RankMemoryScope::RankMemoryScope() { this_threads = new Cache; }

OtherMemoryScope::OtherMemoryScope() : before_(std::exchange(this_threads, nullptr)) {}

OtherMemoryScope::~OtherMemoryScope() { this_threads = static_cast<Cache*>(before_); }

RankMemoryScope::~RankMemoryScope() { delete std::exchange(this_threads, nullptr); }

}  // namespace tandem
