// The memory that LibTorch's allocator keeps of a device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Device.h>

namespace tandem {

/// Gives back to the device what the allocator keeps for tensors to come. Nothing for the CPU, and for allocators that
/// keep nothing.
inline void free_device_memory(c10::Device device) {
  if (device.is_cpu()) return;
  if (auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type())))
    allocator->emptyCache();
}

/// Bytes of a device.
struct DeviceRoom {
  std::size_t free;             ///< that nobody has
  std::size_t most_beyond_now;  ///< that this process had at a time, beyond what it has now
};

/// Nothing for the CPU, and for allocators that do not count.
inline std::optional<DeviceRoom> device_room(c10::Device device) {
  if (device.is_cpu()) return std::nullopt;
  auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  if (!allocator) return std::nullopt;
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto allocated = allocator->getDeviceStats(device.index()).allocated_bytes[kAll];
  return DeviceRoom{allocator->getMemoryInfo(device.index()).first,
                    static_cast<std::size_t>(std::max<std::int64_t>(allocated.peak - allocated.current, 0))};
}

}  // namespace tandem
