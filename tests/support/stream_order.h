// What streams and events order on the fake CUDA, and what they do not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <c10/core/Stream.h>

namespace tandem::test::fake {

using Key = std::int64_t;                    // of a stream
using Clock = std::map<Key, std::uint64_t>;  // for each stream, how many of its operations are done

constexpr Key kStreamsOfDevice = 1'000'000;

inline Key key_of(c10::Stream stream) { return stream.device_index() * kStreamsOfDevice + stream.id(); }

inline void* handle_of(Key key) { return reinterpret_cast<void*>(key + 1); }
inline Key key_of(void* handle) { return reinterpret_cast<Key>(handle) - 1; }

inline std::string name_of(Key key) {
  return "stream " + std::to_string(key % kStreamsOfDevice) + " of device " + std::to_string(key / kStreamsOfDevice);
}

inline void join(Clock& clock, const Clock& other) {
  for (const auto& [key, count] : other) clock[key] = std::max(clock[key], count);
}

inline bool covers(const Clock& clock, Key key, std::uint64_t count) {
  const auto found = clock.find(key);
  return found != clock.end() && found->second >= count;
}

struct Access {
  Key stream;
  std::uint64_t count;
  bool write;
  std::uintptr_t begin, end;
};

struct Block {
  std::size_t bytes;
  bool on_device;
  Key stream;  // that was current when it was allocated
  std::vector<Access> accesses;
  std::set<Key> recorded;
};

// All that is known of order.
class Order {
 public:
  void note(Key stream, const void* data, std::size_t bytes, bool write) {
    if (bytes == 0) return;
    const std::lock_guard lock(mutex_);
    Block* const block = block_of(data);
    if (!block) return;
    Clock& clock = tick(stream);
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    const Access mine{stream, clock[stream], write, begin, begin + bytes};
    for (const Access& other : block->accesses) {
      const bool overlaps = other.begin < mine.end && mine.begin < other.end;
      if (overlaps && (other.write || write) && !covers(clock, other.stream, other.count))
        report(std::string(write ? "a write" : "a read") + " on " + name_of(stream) + " is not ordered after " +
               (other.write ? "a write" : "a read") + " on " + name_of(other.stream));
    }
    // What follows a later access of the same kind by the same stream, or a write over all of it, is covered by it.
    std::erase_if(block->accesses, [&](const Access& other) {
      const bool inside = mine.begin <= other.begin && other.end <= mine.end;
      return inside && (write ? covers(clock, other.stream, other.count) : other.stream == stream && !other.write);
    });
    block->accesses.push_back(mine);
  }

  void allocated(void* data, std::size_t bytes, bool on_device, Key stream) {
    const std::lock_guard lock(mutex_);
    blocks_[reinterpret_cast<std::uintptr_t>(data)] = {bytes, on_device, stream, {}, {}};
    if (on_device) bytes_ += bytes;
  }

  // The stream that allocated the memory may use it again at once. Returns what it was.
  Block freed(void* data) {
    const std::lock_guard lock(mutex_);
    Block block = std::move(blocks_.extract(reinterpret_cast<std::uintptr_t>(data)).mapped());
    if (block.on_device) bytes_ -= block.bytes;
    Clock clock = streams_[block.stream];
    join(clock, host_);
    for (const Access& access : block.accesses)
      if (access.stream != block.stream && !block.recorded.contains(access.stream) &&
          !covers(block.on_device ? clock : host_, access.stream, access.count))
        report("memory is freed that " + name_of(access.stream) + " may still use");
    return block;
  }

  void recorded(const void* data, Key stream) {
    const std::lock_guard lock(mutex_);
    if (Block* block = block_of(data)) block->recorded.insert(stream);
  }

  Clock record(Key stream) {
    const std::lock_guard lock(mutex_);
    return tick(stream);
  }

  void block(Key stream, const Clock& event) {
    const std::lock_guard lock(mutex_);
    join(streams_[stream], event);
  }

  void synchronize(const Clock& with) {
    const std::lock_guard lock(mutex_);
    join(host_, with);
  }

  void synchronize(Key stream) { synchronize(record(stream)); }

  std::vector<std::string> reports() {
    const std::lock_guard lock(mutex_);
    return reports_;
  }

  void reset() {
    const std::lock_guard lock(mutex_);
    reports_.clear();
    for (auto& [data, block] : blocks_) block.accesses.clear();
  }

  std::size_t bytes() {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  // The next operation of a stream comes after what hosts have waited for.
  Clock& tick(Key stream) {
    Clock& clock = streams_[stream];
    join(clock, host_);
    clock[stream] += 1;
    return clock;
  }

  Block* block_of(const void* data) {
    auto after = blocks_.upper_bound(reinterpret_cast<std::uintptr_t>(data));
    if (after == blocks_.begin()) return nullptr;
    auto& [begin, block] = *std::prev(after);
    return reinterpret_cast<std::uintptr_t>(data) < begin + block.bytes ? &block : nullptr;
  }

  void report(std::string text) {
    constexpr std::size_t kMost = 20;
    if (reports_.size() < kMost) reports_.push_back(std::move(text));
  }

  std::mutex mutex_;
  std::map<Key, Clock> streams_;
  Clock host_;
  std::map<std::uintptr_t, Block> blocks_;
  std::vector<std::string> reports_;
  std::size_t bytes_ = 0;
};

}  // namespace tandem::test::fake
